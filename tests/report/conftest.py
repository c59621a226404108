"""A workdir as a run leaves it, without the run."""

import json
from datetime import UTC, datetime

import pytest

from gpt_pjit.core.runtime import open_workdir, record_start
from tests.helpers import tiny
from tests.token_sets import make_set as make_set, small_shards as small_shards

SPIKE = 60  # the step at which each run has one


@pytest.fixture
def make_run(make_set, tmp_path):
    """`make_run(name, steps)` writes a run of so many steps with three starts, and returns its
    workdir; with `lr`, another learning rate.
    """
    dataset, _ = make_set(4000, 200)

    def make(name="run", steps=100, lr=1e-3):
        workdir = tmp_path / name
        data = {"text": "", "path": str(dataset.path), "batch_size": 64}
        config = tiny(data=data, optim={"peak_lr": lr, "steps": 100, "warmup_steps": 10})
        open_workdir(workdir, config)
        info = dataset.info
        identity = {"path": data["path"], "sha256": dataset.fingerprint}
        identity |= {"tokenizer": info.tokenizer.sha256, "vocab_size": info.vocab_size}
        for start in (0, 40, 80):
            record_start(workdir, config, [identity], ("", b""), start)
        now, lines, spans = 1e9, [], []

        def span(what, seconds, start, before, after, **more):
            nonlocal now
            now += seconds
            line = {"at": now, "seconds": seconds, "what": what, "start": start}
            spans.append(line | {"from": before, "to": after} | more)

        record = json.loads((workdir / "run.json").read_text())
        for start, first, end in ((1, 0, 48), (2, 40, 80), (3, 80, steps)):
            record["starts"][start - 1]["time"] = datetime.fromtimestamp(now, UTC).isoformat()
            span("prepare", 5.0, start, first, first)
            span("compile", 7.0, start, first, first + 1)
            for step in range(first + 2, end + 1, 2):
                span("steps", 3.0, start, max(step - 2, first + 1), step, data=0.5)
                loss = 6 - step / 50 + step % 3 / 100 + 2 * (step == SPIKE)
                metrics = {"train/loss": loss, "train/grad_norm": 1 + 9 * (step == SPIKE)}
                metrics |= {"train/learning_rate": lr, "throughput/tokens_per_second": 2048 / 1.5}
                metrics["throughput/mfu"] = 0.4
                lines = [line for line in lines if line["step"] < step]
                lines.append({"step": step, "time": now, **metrics})
            span("validation", 2.0, start, end, end)
            found = {"validation/loss": 5.0, "validation/perplexity": 148.4}
            lines.append({"step": end, "time": now, **found})
        (workdir / "run.json").write_text(json.dumps(record))
        for file, content in (("metrics", lines), ("timeline", spans)):
            text = "".join(json.dumps(line) + "\n" for line in content)
            (workdir / f"{file}.jsonl").write_text(text)
        return workdir

    return make
