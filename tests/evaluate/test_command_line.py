"""The command: its outputs, comparisons, and mistakes in one message."""

import dataclasses
import hashlib
import io
import json
import re
import shutil
import sys

import pytest

from gpt_pjit.core.errors import EXIT_CONFIG, EXIT_DONE, EXIT_INTERRUPTED
from gpt_pjit.evaluate import command, read_results, texts
from gpt_pjit.evaluate.scorer import Scorer
from gpt_pjit.trained import load_trained
from tests.helpers import run_command_here
from tests.processes import run as run_process, without_reader

TEXT = "The first page has several words, and so has the second one.\n" * 4
SENTENCES = "".join(f"sentence {i} of a text for several processes.\n" for i in range(30))


@pytest.fixture
def evaluate(workdir, trained, monkeypatch, capsys):
    """`evaluate(*flags)`: standard output; the model and devices are those of the session."""
    monkeypatch.setattr(command, "start_devices", lambda **_: None)
    monkeypatch.setattr(command, "load_everywhere", lambda *_, **__: trained)

    def run(*flags):
        code, output, _ = run_command_here(capsys, "evaluate", f"--checkpoint={workdir}", *flags)
        assert code == EXIT_DONE
        return output

    return run


@pytest.fixture
def failure(evaluate, workdir, capsys):
    """`failure(*flags)`: the one message on standard error."""

    def run(*flags, code=EXIT_CONFIG):
        argv = [f"--checkpoint={workdir}", *flags]
        found, _, error = run_command_here(capsys, "evaluate", *argv)
        assert found == code
        return error

    return run


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def text8(tmp_path, monkeypatch):
    """A small file in place of the published one; gives its folder."""
    (tmp_path / "text8").write_text(TEXT * 3)
    digest = hashlib.sha256((TEXT * 3).encode()).hexdigest()
    monkeypatch.setitem(texts.TEXTS, "text8", ("text8", f"sha256:{digest}"))
    return tmp_path


def test_json_markdown_and_comparison(evaluate, text, text8, tmp_path):
    common = (f"--data_dir={text8}", "--stride=16", f"--out={tmp_path / 'out'}")
    record = json.loads(evaluate(f"--tasks=text8,file:{text},lengths:text8", *common, "--json"))
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == record
    settings = record.pop("settings")
    assert set(record) == {"text8", f"file:{text}", "lengths:text8"}
    assert {"bits_per_byte", "bits_per_byte_stderr"} < set(record["text8"])
    details = settings["tasks"]
    assert details["text8"]["data"]["checked"]
    assert not details[f"file:{text}"]["data"]["checked"]
    assert details[f"file:{text}"]["bytes"] == text.stat().st_size
    assert details["text8"]["stride"] == 16
    assert len(settings["fingerprint"]) == 64

    other = f"--compare=published,{tmp_path / 'out' / 'results.json'}"
    shown = evaluate("--tasks=text8", *common, other, "--name=mine")
    lines = (tmp_path / "out" / "results.md").read_text().splitlines()
    mine = next(line for line in lines if line.startswith("| text8 | bits_per_byte")).split(" | ")
    assert mine[3:6] == ["1.1024", "1.1330", "1.0543"]
    assert " ± " in mine[2]
    assert mine[2] == mine[-1].removesuffix(" |")
    assert "training log of the 580M run" in " ".join(shown.split())
    assert "mine: step 4 of " in shown


def test_what_is_scored_is_not_lost_when_a_later_task_fails(
    evaluate, failure, text, monkeypatch, tmp_path, capsys
):
    other = tmp_path / "other.txt"
    other.write_text(TEXT)
    score = Scorer.score

    def fail(scorer, requests, task):
        if "other" in task:
            raise RuntimeError("RESOURCE_EXHAUSTED")
        return score(scorer, requests, task)

    monkeypatch.setattr(Scorer, "score", fail)
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        failure(f"--tasks=file:{text},file:{other}", f"--out={tmp_path / 'out'}")
    results = read_results(tmp_path / "out" / "results.json")
    assert list(results.tasks) == [f"file:{text}"]
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert files == ["results.json", "results.md"]
    assert "bits_per_byte" in capsys.readouterr().out


def test_what_the_terminal_cannot_print_is_escaped(evaluate, text, monkeypatch, tmp_path):
    text.write_text("Gr\xfc\xdfe, \u4e16\u754c! " * 9)
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii"))
    evaluate(f"--tasks=file:{text}", f"--out={tmp_path / 'out'}")
    sys.stdout.flush()
    assert b"\\xb1" in printed.getvalue()  # the sign of a standard error
    assert "\xb1" in (tmp_path / "out" / "results.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_reader_that_has_enough_is_no_error(workdir, text):
    """From the process's start to its end, on a terminal that knows ASCII alone."""
    flags = [f"--checkpoint={workdir}/checkpoints/2", f"--tasks=file:{text}"]
    command = [sys.executable, "-m", "gpt_pjit.evaluate", *flags]
    code, errors = without_reader(command, PYTHONIOENCODING="ascii")
    assert code == EXIT_DONE
    assert re.fullmatch(rf"file:{text} \d+/\d+  0:00 left\n", errors)


def test_the_tables_name_the_run_that_an_average_lies_in(workdir, tmp_path):
    (tmp_path / "run").symlink_to(workdir)
    shutil.copytree(workdir, workdir / "averaged")
    for folder, name in ((workdir / "averaged", "run/averaged"), (workdir, "run")):
        assert command._nothing_yet("", load_trained(folder)).name == name


def test_flags_are_checked(failure):
    task = f"--tasks=file:{__file__}"
    wrong = {
        "--rows=0": "'0' is not a positive integer",
        "--dtype=int8": "invalid choice: 'int8'",
        "--tasks=,": "--tasks names no task; known: wikitext2",
        "--window=0": "'0' is not a positive integer",
        "--stride=99": "--stride=99 is longer than the window, 32",
        "--out=gs://bucket/results": "is a URL; give a path on this machine",
        "--bogus": "--help lists all flags",
        f"--out={__file__}": f"--out={__file__} cannot be written: File exists",
    }
    for flag, words in wrong.items():
        assert words in failure(task, flag)


def test_results_name_the_dtype_that_they_were_computed_in(workdir, text, evaluate, monkeypatch):
    """Not that of the run, where --dtype says otherwise."""
    other = load_trained(workdir, dtype="bfloat16")
    monkeypatch.setattr(command, "load_everywhere", lambda *_, **__: other)
    record = json.loads(evaluate(f"--tasks=file:{text}", "--dtype=bfloat16", "--json"))
    assert record["settings"]["dtype"] == "bfloat16"


def test_ctrl_c_is_no_traceback(failure, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "load_everywhere", interrupted)
    assert failure(f"--tasks=file:{__file__}", code=EXIT_INTERRUPTED) == "\nstopped\n"


def test_nothing_is_scored_before_all_inputs_are_found_right(failure, monkeypatch, tmp_path):
    def score(*_):
        raise AssertionError("scored")

    monkeypatch.setattr(Scorer, "score", score)
    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "empty.txt").write_text("")
    files = [f"file:{tmp_path / name}.txt" for name in ("short", "empty")]
    error = failure(f"--tasks={files[0]},lengths:{files[0]},{files[1]}")
    assert "--tasks has 2 problems" in error
    assert "short.txt needs a document of 128 tokens" in error
    assert "empty.txt holds no text" in error


def test_learned_positions_are_said_before_anything_is_computed(failure, trained, monkeypatch):
    model = dataclasses.replace(trained.config.model, positions="learned")
    config = dataclasses.replace(trained.config, model=model)
    learned = dataclasses.replace(trained, config=config)
    monkeypatch.setattr(command, "load_everywhere", lambda *_, **__: learned)
    error = failure(f"--tasks=file:{__file__},lengths:file:{__file__}")
    assert "the model has learned 32 positions; those with alibi read longer texts" in error


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(workdir, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(SENTENCES)
    flags = [f"--checkpoint={workdir}", f"--tasks=file:{text},lengths:file:{text}", "--json"]
    one = [sys.executable, "-m", "gpt_pjit.evaluate", *flags]
    two = ["launch/local.sh", "--processes=2", "--devices=2", "--module=gpt_pjit.evaluate", *flags]
    out = f"--out={tmp_path / 'two'}"
    records = []
    for argv in (one, [*two, out]):
        done = run_process(argv)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines(keepends=True)
        spoken = "".join(line for line in lines if not line.startswith("[Gloo]"))  # of XLA itself
        records.append(json.loads(spoken))
    alone, together = records
    assert alone["settings"]["mesh"]["data"] == 1
    assert together["settings"]["mesh"]["data"] == 4
    assert json.loads((tmp_path / "two" / "results.json").read_text()) == together
    for task, metrics in alone.items():
        if task != "settings":
            for name, value in metrics.items():
                assert together[task][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
