"""Tasks that a run scores as it trains: what `evaluate` gives of the same step, once each."""

import math
import os
import signal
import time

import jax
import pytest

from gpt_pjit.core.checkpoints import saved_steps
from gpt_pjit.core.errors import EXIT_DONE, EXIT_PREEMPTED, ConfigError
from gpt_pjit.core.runtime import Watch, read_run
from gpt_pjit.core.tokens import BytesTokenizer
from gpt_pjit.core.train import Tools, train
from gpt_pjit.data import prepare_text
from gpt_pjit.evaluate.losses import Result
from gpt_pjit.evaluate.scorer import Scorer
from gpt_pjit.evaluate.tasks import _figures, prepare_jobs, tasks_in_run
from gpt_pjit.report.lines import goodput, read_timeline
from gpt_pjit.trained import load_trained
from tests.chaos.harness import Trainer, write_corpus
from tests.helpers import ROOT, program_on, tiny
from tests.processes import by_step

TEXT = f"file:{ROOT}/.gitignore"
METRIC = f"evaluation/{TEXT}/bits_per_byte"


def config_of(folder, **changes):
    (folder / "text.txt").write_text("".join(f"{i} squared is {i * i}\n" for i in range(2000)))
    data = {"text": str(folder / "text.txt"), "validation_split": "tail"}
    return tiny(
        model={"n_layers": 1, "d_model": 32, "d_ff": 32},
        data=data | {"batch_size": 64, "sequence_length": 16},
        optim={"steps": 6, "warmup_steps": 0, "microbatches": 2, "peak_lr": 0.02},
        checkpoint={"every": 2, "keep": 9},
        eval={"tasks": (TEXT,), "every": 100, **changes},
    )


def of_checkpoint(workdir, step):
    """What `gpt_pjit evaluate` computes of a step."""
    (job,) = prepare_jobs([TEXT], Scorer(load_trained(workdir / "checkpoints" / str(step))))
    return job()[TEXT].metrics["bits_per_byte"]


@pytest.mark.slow
def test_a_run_scores_what_evaluate_scores_of_its_checkpoints(tmp_path):
    config, workdir = config_of(tmp_path, tasks_every=4), tmp_path / "run"
    assert train(config, workdir, Tools(prepare_text, None, tasks=tasks_in_run)) == EXIT_DONE
    found = by_step(workdir, METRIC)
    assert list(found) == [4, 6]
    assert found == pytest.approx({step: of_checkpoint(workdir, step) for step in found}, rel=1e-6)
    assert abs(found[4] - found[6]) > 1e-3  # the weights are those of the step
    assert by_step(workdir, f"{METRIC}_stderr")[6] > 0
    spent = goodput(read_timeline(workdir))
    assert spent["evaluation"] > 0
    assert spent["wall"] == pytest.approx(sum(spent.values()) - spent["wall"])


@pytest.mark.slow
def test_what_a_stop_cuts_short_is_left_to_the_next_start(tmp_path):
    """Also at the last step, where the run is not finished yet; what was written is not redone."""
    config, workdir, looks = config_of(tmp_path, tasks_every=4), tmp_path / "run", 0

    def tasks(model, tokenizer, config, ticking):
        def score(params):
            nonlocal looks
            looks += 1
            for piece in ticking(range(100)):
                if looks == 2 and piece == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01 if looks == 2 else 0)
            if looks == 1:  # after its last piece: it is whole, and the run stops at the next tick
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)
            return {METRIC: float(looks)}

        return score

    tools = Tools(prepare_text, None, tasks=tasks)
    expected = {1: {4: 1.0}, 2: {4: 1.0}, 3: {4: 1.0, 6: 3.0}}
    for start in (1, 2, 3):
        code = train(config, workdir, tools)
        assert looks == start
        assert by_step(workdir, METRIC) == expected[start]
        assert code == (EXIT_DONE if start == 3 else EXIT_PREEMPTED)
        assert read_run(workdir)[1].get("finished") == (6 if start == 3 else None)


@pytest.mark.slow
def test_pieces_that_take_long_are_not_stuck(monkeypatch):
    ends = []
    monkeypatch.setattr("gpt_pjit.core.runtime.watch.end_all", lambda *_, **__: ends.append(1))
    for slow in (True, False):
        with Watch(patience=0.1) as watch, watch.slow():
            for _ in watch.ticking(range(2), slow):
                time.sleep(1)
        assert bool(ends) is not slow


@pytest.mark.slow
def test_two_processes_killed_before_a_task_write_it_once(tmp_path):
    flags = {"eval.tasks": f"('{TEXT}',)", "eval.tasks_every": 4, "optim.steps": 6}
    flags |= {"eval.every": 4}
    run = Trainer(tmp_path / "run", write_corpus(tmp_path), processes=2, devices=1, flags=flags)
    run.start([{"at": "first batch", "do": "sleep"}])  # of the validation, which comes first
    deadline = time.monotonic() + 240
    while 4 not in saved_steps(run.workdir / "checkpoints"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.signal(signal.SIGKILL)
    ended = run.wait()
    assert -9 in ended.codes, ended.errors  # the other may have seen it go
    assert by_step(run.workdir, METRIC) == {}
    ended = run.run()
    assert set(ended.codes) == {EXIT_DONE}, ended.errors
    found = by_step(run.workdir, METRIC)
    assert list(found) == [4, 6]
    expected = {step: of_checkpoint(run.workdir, step) for step in found}
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": ("piqa", "core")}, "piqa needs lm-eval: pip install 'gpt_pjit[eval]'"),
        ({"tasks": ("core",)}, "set eval.tasks_data_dir in a run"),
        ({"tasks": ("file:none", "file:nothing")}, "eval.tasks has 2 problems"),
    ],
)
def test_mistakes_are_told_before_the_first_step(tmp_path, monkeypatch, changes, words):
    monkeypatch.setattr("gpt_pjit.evaluate.harness.find_spec", lambda name: None)
    config = config_of(tmp_path, **changes)
    model = program_on(config, (1, 1, 1)).model
    with pytest.raises(ConfigError, match=r"eval\.tasks has") as error:
        tasks_in_run(model, BytesTokenizer(), config, iter)
    assert words in str(error.value)


@pytest.mark.slow
def test_losses_that_are_not_finite_end_no_run(tmp_path, capsys):
    config, pieces = config_of(tmp_path), []
    program = program_on(config, (1, 1, 1))

    def ticking(batches):
        for batch in batches:
            yield batch
            pieces.append(batch)

    with jax.set_mesh(program.mesh):
        params = program.init(jax.random.key(0)).params
        score = tasks_in_run(program.model, BytesTokenizer(), config, ticking)
        assert score(params)[METRIC] == pytest.approx(math.log2(512), rel=0.05)
        assert len(pieces) == 1  # 123 bytes in windows of 16, of which a step reads 32
        assert score(jax.tree.map(lambda leaf: leaf * math.nan, params)) == {}
    assert "the model's losses are not finite" in capsys.readouterr().err


def test_of_a_group_its_own_figures_are_written():
    acc = {"acc": 0.5, "acc_stderr": 0.1, "nll_max": 9.0}
    tasks = {f"mmlu_{part}": Result(acc, {}) for part in ("law", "art")}
    group = {"mmlu": Result({"acc": 0.4, "acc_stderr": None}, {})}
    assert _figures("mmlu", tasks | group) == {"evaluation/mmlu/acc": 0.4}
    names = [
        f"evaluation/mmlu_{part}/acc{end}" for part in ("law", "art") for end in ("", "_stderr")
    ]
    assert list(_figures("mmlu_*", tasks)) == names
    assert list(_figures("core", tasks | {"core": Result({"core": None}, {})})) == names
    filtered = Result({"exact_match,strict-match": 0.5}, {})
    assert list(_figures("gsm8k", {"gsm8k": filtered})) == [
        "evaluation/gsm8k/exact_match_strict-match"
    ]
