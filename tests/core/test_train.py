"""Whole runs of the real command in real processes: train, finish, Ctrl-C, resume, refuse."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from gpt_pjit.core.errors import EXIT_CONFIG, EXIT_DONE, EXIT_INTERRUPTED
from tests.helpers import ROOT, without_reader, write_texts

NAMES = {
    "train/loss",
    "train/grad_norm",
    "train/learning_rate",
    "throughput/tokens_per_second",
    "throughput/data_wait",
    "validation/loss",
    "validation/perplexity",
    "validation/bits_per_byte",
}
STEPS = 24
FLAGS = {
    "model.n_layers": 2,
    "model.d_model": 64,
    "model.d_ff": 128,
    "model.vocab_size": 288,
    "model.dropout_residual": 0.1,
    "model.dropout_attention": 0.1,
    "data.text_exclude": "",
    "data.tokenizer": "bytes",
    "data.validation_fraction": 0.2,
    "data.sequence_length": 32,
    "data.batch_size": 32,
    "optim.steps": STEPS,
    "optim.peak_lr": 2e-3,
    "optim.warmup_steps": 4,
    "eval.every": 12,
    "checkpoint.every": 8,
    "log.every": 1,
    "sample.tokens": 20,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("corpus"), files=40, lines=120)


def flags(corpus, workdir, **changes):
    fields = FLAGS | {"data.text": f"{corpus}/*.txt"} | changes
    config = [f"--config.{name}={value}" for name, value in fields.items()]
    return ["--config=configs/quickstart.py", f"--workdir={workdir}", *config]


def command(*arguments):
    return [sys.executable, "-m", "gpt_pjit.main", *arguments]


ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}


def run(arguments, **environment):
    result = subprocess.run(
        arguments,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=ENVIRONMENT | {"PYTHON": sys.executable} | environment,
        timeout=300,
    )
    return result


def metrics(workdir, name="train/loss"):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    result = run(command(*flags(corpus, workdir)))
    assert result.returncode == EXIT_DONE, result.stderr
    return workdir, result.stdout


def test_a_run_leaves_metrics_checkpoints_and_its_record(finished):
    workdir, output = finished
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert {name for line in lines for name in line} == NAMES | {"step"}
    losses = metrics(workdir)
    assert list(losses) == list(range(1, STEPS + 1))
    assert losses[STEPS] < losses[2] - 0.3
    assert list(metrics(workdir, "validation/loss")) == [12, 24]
    assert any((workdir / "tensorboard").iterdir())
    assert (workdir / "checkpoints" / str(STEPS)).is_dir()
    record = json.loads((workdir / "run.json").read_text())
    assert record["config"]["optim"]["steps"] == STEPS
    (start,) = record["starts"]
    assert start["packages"]["jax"]
    assert start["environment"]["JAX_NUM_CPU_DEVICES"] == "2"
    assert "--config.optim.steps=24" in start["command"]
    assert "sample:" in output


def test_the_same_command_again_says_that_the_run_is_finished(corpus, finished):
    workdir, _ = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    result = run(command(*flags(corpus, workdir)))
    assert result.returncode == EXIT_DONE
    assert f"this run is finished: {workdir} holds all {STEPS} steps" in result.stdout
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_another_config_is_refused_and_nothing_changes(corpus, finished):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    result = run(command(*flags(corpus, workdir, **{"optim.peak_lr": 0.1, "seed": 5})))
    assert result.returncode == EXIT_CONFIG
    assert f"optim.peak_lr=0.1: the run in {workdir} has 0.002; keep that value" in result.stderr
    assert "seed=5" in result.stderr
    assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}


def test_ctrl_c_saves_and_the_same_command_resumes_bit_for_bit(corpus, finished, tmp_path):
    workdir = tmp_path / "run"
    arguments = command(*flags(corpus, workdir))
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    log = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().split("\n")) > 2):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == EXIT_INTERRUPTED, output
    assert "the same command resumes" in output
    stopped = max(metrics(workdir))
    assert stopped < STEPS
    resumed = run(arguments)
    assert resumed.returncode == EXIT_DONE, resumed.stderr
    expected, got = metrics(finished[0]), metrics(workdir)
    assert got == expected
    assert metrics(workdir, "validation/loss") == metrics(finished[0], "validation/loss")


@pytest.mark.slow
def test_a_start_that_found_no_data_does_not_bind_the_workdir(corpus, tmp_path):
    workdir = tmp_path / "run"
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n" * 100)
    for wrong in ("none/*.txt", f"{tmp_path}/latin.txt"):
        result = run(command(*flags(corpus, workdir, **{"data.text": wrong})))
        assert result.returncode == EXIT_CONFIG
    result = run(command(*flags(corpus, workdir, **{"optim.steps": 2})))
    assert result.returncode == EXIT_DONE, result.stderr
    assert max(metrics(workdir)) == 2


@pytest.mark.slow
def test_a_corpus_too_small_for_validation_trains_without(tmp_path):
    """And a run shorter than its warm-up says what it does instead."""
    (tmp_path / "one.txt").write_text("a single document\n" * 400)
    few = {"data.text": f"{tmp_path}/one.txt", "data.validation_fraction": 0.0, "optim.steps": 3}
    result = run(command(*flags(tmp_path, tmp_path / "run", **few)))
    assert result.returncode == EXIT_DONE, result.stderr
    assert "no validation tokens, so no validation" in result.stdout
    assert "warm-up: 0 steps, a tenth of the run" in result.stdout
    assert max(metrics(tmp_path / "run")) == 3
    assert metrics(tmp_path / "run", "validation/loss") == {}


@pytest.mark.slow
def test_training_goes_on_when_its_reader_is_gone(corpus, tmp_path):
    workdir = tmp_path / "run"
    arguments = command(*flags(corpus, workdir, **{"optim.steps": 10}))
    code, errors = without_reader(arguments, cwd=ROOT, env=ENVIRONMENT)
    assert code == EXIT_DONE, errors
    assert "BrokenPipe" not in errors
    assert max(metrics(workdir)) == 10


@pytest.mark.slow
def test_four_processes_train_to_the_losses_of_one_and_resume_its_workdir(corpus, tmp_path):
    """4 processes x 8 devices, the shape of a v3-32, with the batch of one process."""
    launcher = ["launch/local.sh", "--processes=4", "--devices=8"]
    fields = {
        "data.batch_size": 64,
        "optim.microbatches": 2,
        "data.sequence_length": 16,
        "data.validation_fraction": 0.5,  # 60 evaluation steps in a row, which once hung
    }
    one, four = tmp_path / "one", tmp_path / "four"
    result = run(command(*flags(corpus, one, **fields)))
    assert result.returncode == EXIT_DONE, result.stderr
    result = run([*launcher, *flags(corpus, four, **fields)])
    assert result.returncode == EXIT_DONE, result.stderr
    assert "devices: 32 cpu, mesh data 32" in result.stdout
    expected = metrics(one)
    assert metrics(four) == pytest.approx(expected, abs=1e-5)
    # Cut the run of one process back to step 8, and let four processes take it from there.
    for step in (16, 24):
        subprocess.run(["rm", "-r", one / "checkpoints" / str(step)], check=True)
    result = run([*launcher, *flags(corpus, one, **fields)])
    assert result.returncode == EXIT_DONE, result.stderr
    assert "steps: 8 of 24 done" in result.stdout
    assert metrics(one) == pytest.approx({s: expected[s] for s in metrics(one)}, abs=1e-5)
    assert max(metrics(one)) == STEPS


@pytest.mark.slow
def test_two_processes_branch_and_change_a_run_as_one_does(corpus, tmp_path):
    """The whole command: one process trains the trunk; then the same branch by one and by two."""
    launcher = ["launch/local.sh", "--processes=2", "--devices=1"]
    trunk, one, two = tmp_path / "trunk", tmp_path / "one", tmp_path / "two"
    stable = {"optim.schedule": "constant", "optim.steps": 8}
    decay = {"optim.schedule": "wsd", "optim.steps": 12, "optim.decay_steps": 4}
    origin = f"--from={trunk}/checkpoints/8"
    for arguments in (
        command(*flags(corpus, trunk, **stable)),
        command(*flags(corpus, one, **decay), origin),
        [*launcher, *flags(corpus, two, **decay), origin],
    ):
        result = run(arguments)
        assert result.returncode == EXIT_DONE, result.stderr
    assert result.stdout.count("from step 8 of") == 1
    assert list(metrics(two)) == [9, 10, 11, 12]
    assert metrics(two) == pytest.approx(metrics(one), abs=1e-5)
    more = flags(corpus, two, **decay | {"optim.steps": 14, "data.batch_size": 64})
    refused = run([*launcher, *more])
    assert refused.returncode == EXIT_CONFIG
    assert "--allow_change=data.batch_size,optim.steps, or start a new run" in refused.stderr
    result = run([*launcher, *more, "--allow_change=data.batch_size,optim.steps"])
    assert result.returncode == EXIT_DONE, result.stderr
    assert max(metrics(two)) == 14
    record = json.loads((two / "run.json").read_text())
    (change,) = [start["changes"] for start in record["starts"] if "changes" in start]
    assert change["optim.steps"] == {"from": 12, "to": 14}
    assert [walk["step"] for walk in record["walks"]] == [0, 12]
    assert record["walks"][1]["sets"][0]["taken"] == 12 * 32
