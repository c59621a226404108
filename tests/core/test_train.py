"""Whole runs of the real command in real processes: train, finish, Ctrl-C, resume, refuse."""

import itertools
import json
import signal
import sys
import time

import pytest

from gpt_pjit.core.errors import EXIT_CONFIG, EXIT_DONE, EXIT_INTERRUPTED
from gpt_pjit.report.lines import goodput, read_timeline
from tests.helpers import write_texts
from tests.processes import (
    Process,
    by_step,
    logged,
    run as run_process,
    run_flags,
    wait_for_end,
    without_reader,
)

NAMES = {
    "train/loss",
    "train/grad_norm",
    "train/learning_rate",
    "throughput/tokens_per_second",
    "throughput/data_wait",
    "time/step",
    "time/data",
    "time/dispatch",
    "time/devices",
    "time/write",
    "time/rest",
    "time/idle",
    "validation/loss",
    "validation/perplexity",
    "validation/bits_per_byte",
}
STEPS = 24
FLAGS = {
    "model.dropout_residual": 0.1,
    "model.dropout_attention": 0.1,
    "data.validation_fraction": 0.2,
    "optim.steps": STEPS,
    "optim.peak_lr": 2e-3,
    "optim.warmup_steps": 4,
    "eval.every": 12,
    "checkpoint.every": 8,
    "sample.tokens": 20,
    "sample.every": 8,
    "sample.prompts": "('line', '7')",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("corpus"), files=40, lines=120)


def flags(corpus, workdir, **changes):
    return run_flags(workdir, FLAGS | {"data.text": f"{corpus}/*.txt"} | changes)


def command(*arguments):
    return [sys.executable, "-m", "gpt_pjit.main", *arguments]


def run(arguments, **options):
    return run_process(arguments, devices=2, **options)


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    result = run(command(*flags(corpus, workdir)))
    assert result.returncode == EXIT_DONE, result.stderr
    return workdir, result.stdout


def test_a_run_leaves_metrics_checkpoints_and_its_record(finished):
    workdir, output = finished
    assert {name for line in logged(workdir) for name in line} == NAMES | {"step", "time"}
    losses = by_step(workdir)
    assert list(losses) == list(range(1, STEPS + 1))
    assert losses[STEPS] < losses[2] - 0.3
    assert list(by_step(workdir, "validation/loss")) == [12, 24]
    assert any((workdir / "tensorboard").iterdir())
    assert (workdir / "checkpoints" / str(STEPS)).is_dir()
    record = json.loads((workdir / "run.json").read_text())
    assert record["config"]["optim"]["steps"] == STEPS
    (start,) = record["starts"]
    assert start["packages"]["jax"]
    assert start["environment"]["JAX_NUM_CPU_DEVICES"] == "2"
    assert "--config.optim.steps=24" in start["command"]
    texts = logged(workdir, "samples.jsonl")
    wanted = [(step, prompt) for step in (8, 16, STEPS) for prompt in ("line", "7")]
    assert [(text["step"], text["prompt"]) for text in texts] == wanted
    assert output.count("sample:") == 2


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
    process = Process(arguments, devices=2)
    log = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().split("\n")) > 2):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    (end,) = wait_for_end([process], 120)
    assert end.returncode == EXIT_INTERRUPTED, end
    assert "the same command resumes" in end.stdout
    stopped = max(by_step(workdir))
    assert stopped < STEPS
    with (workdir / "timeline.jsonl").open("a") as file:
        file.write('{"at": 17')  # cut short, as by a kill
    resumed = run(arguments)
    assert resumed.returncode == EXIT_DONE, resumed.stderr
    assert_accounts_for_two_starts(workdir, stopped)
    expected, got = by_step(finished[0]), by_step(workdir)
    assert got == expected
    assert by_step(workdir, "validation/loss") == by_step(finished[0], "validation/loss")
    assert logged(workdir, "samples.jsonl") == logged(finished[0], "samples.jsonl")


def assert_accounts_for_two_starts(workdir, stopped):
    """Each second of both, and what lies between; the spans of a start leave no gap."""
    lines = read_timeline(workdir)
    assert {line["what"] for line in lines} == {
        "prepare", "restore", "compile", "steps", "save", "validation", "sample", "end"
    }  # fmt: skip
    ends = [line for line in lines if line["what"] == "end"]
    assert [(line["start"], line["to"]) for line in ends] == [(1, stopped), (2, STEPS)]
    for one, two in itertools.pairwise(lines):
        assert two["from"] == one["to"]
        if one["what"] != "end":
            assert two["at"] - two["seconds"] == pytest.approx(one["at"], abs=0.01)
    found = goodput(lines)
    began = lines[0]["at"] - lines[0]["seconds"]
    assert found["wall"] == pytest.approx(lines[-1]["at"] - began, abs=0.1)
    assert found["redone"] == 0
    assert 0 < found["down"] < 10


@pytest.mark.slow
@pytest.mark.long
def test_a_start_that_found_no_data_does_not_bind_the_workdir(corpus, tmp_path):
    workdir = tmp_path / "run"
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n" * 100)
    for wrong in ("none/*.txt", f"{tmp_path}/latin.txt"):
        result = run(command(*flags(corpus, workdir, **{"data.text": wrong})))
        assert result.returncode == EXIT_CONFIG
    result = run(command(*flags(corpus, workdir, **{"optim.steps": 2})))
    assert result.returncode == EXIT_DONE, result.stderr
    assert max(by_step(workdir)) == 2


@pytest.mark.slow
def test_a_corpus_too_small_for_validation_trains_without(tmp_path):
    """And a run shorter than its warm-up says what it does instead."""
    (tmp_path / "one.txt").write_text("a single document\n" * 400)
    few = {"data.text": f"{tmp_path}/one.txt", "data.validation_fraction": 0.0, "optim.steps": 3}
    result = run(command(*flags(tmp_path, tmp_path / "run", **few)))
    assert result.returncode == EXIT_DONE, result.stderr
    assert "no validation tokens, so no validation" in result.stdout
    assert "warm-up: 0 steps, a tenth of the run" in result.stdout
    assert max(by_step(tmp_path / "run")) == 3
    assert by_step(tmp_path / "run", "validation/loss") == {}


@pytest.mark.slow
def test_training_goes_on_when_its_reader_is_gone(corpus, tmp_path):
    workdir = tmp_path / "run"
    arguments = command(*flags(corpus, workdir, **{"optim.steps": 10}))
    code, errors = without_reader(arguments, devices=2)
    assert code == EXIT_DONE, errors
    assert "BrokenPipe" not in errors
    assert max(by_step(workdir)) == 10


@pytest.mark.slow
@pytest.mark.long
def test_four_processes_train_to_the_losses_of_one(corpus, tmp_path):
    """4 processes x 8 devices, the shape of a v3-32, with the batch of one process."""
    launcher = ["launch/local.sh", "--processes=4", "--devices=8"]
    fields = {
        "data.batch_size": 64,
        "optim.microbatches": 2,
        "data.sequence_length": 16,
        "data.validation_fraction": 0.5,  # 60 evaluation steps in a row, which once hung
    }
    looks = {"log.depth_every": 16}
    one, four = tmp_path / "one", tmp_path / "four"
    result = run(command(*flags(corpus, one, **fields)))
    assert result.returncode == EXIT_DONE, result.stderr
    # 32 devices on a few cores that other tests use too.
    result = run([*launcher, *flags(corpus, four, **fields, **looks)], seconds=600)
    assert result.returncode == EXIT_DONE, result.stderr
    assert "devices: 32 cpu, mesh data 32" in result.stdout
    assert by_step(four) == pytest.approx(by_step(one), abs=1e-5)
    for name in ("gradient", "activation", "attention_logit"):
        assert list(by_step(four, f"depth/{name}/layer_01")) == [16]
    assert by_step(four, "depth/lost") == {16: 0.0}


@pytest.mark.slow
@pytest.mark.long
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
    assert list(by_step(two)) == [9, 10, 11, 12]
    assert by_step(two) == pytest.approx(by_step(one), abs=1e-5)
    more = flags(corpus, two, **decay | {"optim.steps": 14, "data.batch_size": 64})
    refused = run([*launcher, *more])
    assert refused.returncode == EXIT_CONFIG
    assert "--allow_change=data.batch_size,optim.steps, or start a new run" in refused.stderr
    result = run([*launcher, *more, "--allow_change=data.batch_size,optim.steps"])
    assert result.returncode == EXIT_DONE, result.stderr
    assert max(by_step(two)) == 14
    record = json.loads((two / "run.json").read_text())
    (change,) = [start["changes"] for start in record["starts"] if "changes" in start]
    assert change["optim.steps"] == {"from": 12, "to": 14}
    assert [walk["step"] for walk in record["walks"]] == [0, 12]
    assert record["walks"][1]["sets"][0]["taken"] == 12 * 32
