"""A run in a bucket: what reads a workdir reads this one, what makes one makes one there."""

import json
import sys

import jax
import numpy as np
import pytest

from gpt_pjit.checkpoint_arrays import derived_workdir
from gpt_pjit.core.errors import EXIT_CONFIG, EXIT_DONE, ConfigError
from gpt_pjit.core.files import as_path
from gpt_pjit.core.runtime import open_workdir, read_run
from gpt_pjit.core.runtime.metrics import MetricsWriter
from gpt_pjit.core.tokens import BytesTokenizer
from gpt_pjit.report.lines import read_timeline
from gpt_pjit.report.record import report_record
from gpt_pjit.trained import load_trained
from tests.helpers import make_workdir, run_command_here, tiny
from tests.processes import by_step, start_run, wait_for_end


@pytest.fixture(scope="module")
def runs(bucket, tmp_path_factory):
    """The same run in a bucket and in a folder."""
    local = tmp_path_factory.mktemp("local") / "run"
    stored = as_path(f"{bucket}/runs/one")
    for folder in (stored, local):
        make_workdir(folder, tiny(model={"d_ff": 256}), steps=(1, 2))
    return stored, local


@pytest.fixture
def call(monkeypatch, capsys):
    """The output of a command, in this process, whose devices are started."""
    for room in ("checkpoint", "generate", "evaluate"):
        monkeypatch.setattr(f"gpt_pjit.{room}.command.start_devices", lambda **_: None)

    def call(command, *argv):
        code, output, errors = run_command_here(capsys, command, *argv)
        assert code == EXIT_DONE, errors
        return output

    return call


def test_a_model_is_loaded(runs):
    stored, local = map(load_trained, map(str, runs))
    assert (stored.step, str(stored.workdir)) == (2, str(runs[0]))
    assert load_trained(f"{runs[0]}/checkpoints/1").step == 1
    for pair in zip(*(jax.tree.leaves(each.weights) for each in (stored, local)), strict=True):
        assert np.array_equal(*pair)


def test_a_report_is_that_of_a_folder(runs):
    for run in runs:
        (run / "metrics.jsonl").write_text('{"step": 1, "time": 2e9, "train/loss": 3.0}\n')
    stored, local = (report_record([run])["runs"][run.name] for run in runs)
    assert stored["steps"]["done"] == 1
    assert not stored["gaps"]
    for name in ("config", "steps", "measured", "placement"):
        assert stored[name] == local[name]


@pytest.mark.slow
def test_checkpoints_are_listed_averaged_and_grown(runs, call):
    listed, expected = (
        json.loads(call("checkpoint", "list", run, "--json"))["checkpoints"] for run in runs
    )
    assert [(c["step"], c["complete"]) for c in listed] == [(1, True), (2, True)]
    assert abs(listed[0]["size"] / expected[0]["size"] - 1) < 0.02
    assert listed[0]["date"] >= expected[0]["date"][:4]
    folder = runs[0].parent
    call("checkpoint", "grow", runs[0], "--layers=4", f"--out={folder}/grown", "--noloss")
    assert load_trained(f"{folder}/grown").config.model.n_layers == 4
    record = read_run(folder / "grown")[1]
    assert record["source"]["from"] == str(runs[0])


@pytest.mark.slow
def test_an_export_is_that_of_the_same_run_in_a_folder(runs, call, tmp_path):
    for name, run in zip(("stored", "local"), runs, strict=True):
        call("hf", "export", f"--checkpoint={run}", f"--out={tmp_path / name}")
    files = [path.name for path in (tmp_path / "local").iterdir()]
    assert "model.safetensors" in files
    for name in files:
        ours, theirs = ((tmp_path / each / name).read_bytes() for each in ("stored", "local"))
        assert ours == theirs.replace(b"# local", b"# stored"), name


@pytest.mark.slow
def test_text_is_generated_and_scored(runs, call, tmp_path):
    (tmp_path / "text").write_text("def f(x): return x\n" * 20)
    generated, scored = [], []
    for run in runs:
        flags = ("--prompt=def", "--max_new_tokens=8", "--json")
        generated.append(json.loads(call("generate", f"--checkpoint={run}", *flags))["results"])
        flags = (f"--tasks=file:{tmp_path / 'text'}", "--json", "--name=x")
        record = json.loads(call("evaluate", f"--checkpoint={run}", *flags))
        scored.append(record[f"file:{tmp_path / 'text'}"])
    assert generated[0] == generated[1]
    assert scored[0] == scored[1]


def test_a_new_workdir_that_fails_leaves_nothing(bucket):
    out = as_path(f"{bucket}/derived")
    source = {"kind": "import", "from": "somewhere"}
    written = []

    def fail():
        with derived_workdir(out, tiny(), BytesTokenizer(), source) as draft:
            (draft / "checkpoints" / "0" / "file").write_text("")
            written.extend(out.iterdir())
            raise ConfigError(["no"])

    with pytest.raises(ConfigError, match="no"):
        fail()
    assert [path.name for path in written] == ["checkpoints"]  # no run.json: a kill leaves no run
    assert not out.exists()
    with derived_workdir(out, tiny(), BytesTokenizer(), source):
        pass
    assert read_run(out)[0] == tiny()
    with (
        pytest.raises(ConfigError, match="already exists; choose another --out"),
        derived_workdir(out, tiny(), BytesTokenizer(), source),
    ):
        pass


def test_a_workdir_that_cannot_be_used_is_one_sentence(bucket):
    missing = as_path(bucket.replace("bucket", "missing") + "/run")
    with pytest.raises(ConfigError, match=r"there is no bucket .*missing; create it"):
        open_workdir(missing, tiny())
    with pytest.raises(ConfigError, match="missing/run is not a folder"):
        read_run(missing)
    other = as_path(f"{bucket}/other")
    (other / "file").write_text("")
    with pytest.raises(ConfigError, match="is neither a run nor an empty folder"):
        open_workdir(other, tiny())


def test_metrics_of_an_earlier_start_are_kept_up_to_the_step_that_it_resumes_from(bucket):
    workdir = as_path(f"{bucket}/metrics")
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        writer = MetricsWriter(workdir, start)
        for step in steps:
            writer.write(step, {"train/loss": float(start)})
            writer.write_samples(step, [("one", f"of {start}")])
            writer.write_span({"start": start, "to": step})
        writer.close()
    assert by_step(workdir) == {1: 0, 2: 0, 3: 2, 4: 2}
    assert any((workdir / "tensorboard").iterdir())
    assert [(line["start"], line["to"]) for line in read_timeline(workdir)] == [
        (0, 1), (0, 2), (0, 3), (2, 3), (2, 4)
    ]  # fmt: skip
    samples = map(json.loads, (workdir / "samples.jsonl").read_text().splitlines())
    assert [(line["step"], line["text"]) for line in samples] == [
        (1, "of 0"), (3, "of 2"), (4, "of 2")
    ]  # fmt: skip


def test_another_scheme_is_refused_by_the_command_line(capsys):
    code, _, errors = run_command_here(capsys, "evaluate", "--checkpoint=az://b/run", "--tasks=x")
    assert code == EXIT_CONFIG
    assert "az://b/run is neither a path on this machine nor gs://... or s3://..." in errors


PROBING = """
import sys, time
import jax
from gpt_pjit.config import MeshConfig
from gpt_pjit.core.files import as_path, buckets
from gpt_pjit.core.runtime import ending_together, initialize_devices, open_workdir
from tests.helpers import tiny

def slow_probe(folder, process):
    probe = folder / f"probe-{process}"
    probe.write_bytes(bytes(8))
    time.sleep(2 * process)  # process 0 is done long before
    probe.unlink()

buckets.write_probe = slow_probe
initialize_devices(MeshConfig())
with ending_together():
    open_workdir(as_path(sys.argv[1]), tiny())
"""


@pytest.mark.slow
def test_what_a_host_writes_to_try_is_not_taken_for_a_run(bucket):
    command = [sys.executable, "-c", PROBING, f"{bucket}/runs/probed"]
    ends = wait_for_end(start_run(2, command), 120)
    assert [end.returncode for end in ends] == [0, 0], ends
