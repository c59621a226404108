"""The front door and what all commands share: flags, configs, errors."""

import argparse
import errno
import runpy
import signal
import sys

import pytest

from gpt_pjit.__main__ import COMMANDS, main as front_door
from gpt_pjit.commandline import Parser, comma_separated, positive, report_errors
from gpt_pjit.core.errors import EXIT_CONFIG, EXIT_FAULT, EXIT_INTERRUPTED
from tests.helpers import run_command_here
from tests.processes import run


def module(*arguments):
    return run([sys.executable, "-m", *arguments])


def stopped(work):
    """The exit code of a command that does `work` and is stopped by it."""
    with pytest.raises(SystemExit) as stop, report_errors():
        work()
    return stop.value.code


def parsed(*argv):
    parser = Parser(prog="x")
    parser.add_config()
    parser.add_argument("--n", type=positive, default=1)
    return parser.parse(argv)


def test_help_lists_every_command_with_a_line():
    listed = module("gpt_pjit", "--help").stdout
    for name, (_, summary) in COMMANDS.items():
        assert f"{name} " in listed
        assert summary in listed


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_the_same_by_each_of_its_names(name, capsys, monkeypatch):
    long = "gpt_pjit.main" if name == "train" else f"gpt_pjit.{name}"
    monkeypatch.setattr(sys, "argv", [long, "--help"])
    monkeypatch.delitem(sys.modules, long, raising=False)  # runpy warns of one that is there
    shown = []
    for start in (
        lambda: runpy.run_module(long, run_name="__main__", alter_sys=True),
        lambda: front_door([name, "--help"]),
    ):
        with pytest.raises(SystemExit) as stop:
            start()
        assert stop.value.code == 0
        shown.append(" ".join(capsys.readouterr().out.split()).partition("[-h]")[2])
    assert shown[0] == shown[1] != ""


def test_the_front_door_is_a_module_too():
    result = module("gpt_pjit", "data", "info", "nowhere")
    assert result.returncode == EXIT_CONFIG
    assert "nowhere" in result.stderr


def test_importing_the_package_changes_no_signal_handler():
    program = "import signal, gpt_pjit; print(signal.getsignal(signal.SIGINT))"
    assert "default_int_handler" in run([sys.executable, "-c", program]).stdout
    check = "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    timed = module("timeit", "-n1", "-r1", "import signal, gpt_pjit", check)
    assert timed.returncode == 0


@pytest.mark.parametrize(
    "argv",
    [
        ["--config=configs/580m.py", "--config.optim.steps=7", "--n=2"],
        ["--config", "configs/580m.py", "--n", "2", "--config.optim.steps", "7"],
        ["--config.optim.steps=7", "--n=2", "--config=configs/580m.py"],
    ],
    ids=" ".join,
)
def test_configs_and_flags_in_any_order_and_spelling(argv):
    flags = parsed(*argv)
    assert flags.n == 2
    assert flags.config.stem == "580m"
    assert flags.config.read().optim.steps == 7
    again = parsed(*flags.config.arguments)
    assert again.config.read() == flags.config.read()


def test_booleans_of_a_config_may_stand_alone():
    flags = parsed(
        "--config=configs/580m.py", "--config.model.qk_norm", "--noconfig.model.scan_layers"
    )
    config = flags.config.read()
    assert config.model.qk_norm
    assert not config.model.scan_layers


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--m=2"], "unrecognized arguments: --m=2"),
        (["--n=0"], "'0' is not a positive integer"),
        (["--config.optim.steps=7"], "overrides a config; name the config with --config=FILE"),
        (["--confi=x"], "unrecognized arguments: --confi=x"),
    ],
)
def test_a_mistake_in_the_flags_is_one_line(capsys, argv, words):
    with pytest.raises(SystemExit) as stop:
        parsed(*argv)
    error = capsys.readouterr().err
    assert stop.value.code == EXIT_CONFIG
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("# Title\n\nSome words.", "config.py is not valid Python: invalid syntax"),
        ("def get_config():\n    return 3\n", "get_config() of {path} does not return a config"),
    ],
)
def test_a_file_that_is_not_a_config(capsys, tmp_path, content, words):
    path = tmp_path / "config.py"
    path.write_text(content)
    code, _, errors = run_command_here(capsys, "train", f"--config={path}")
    assert (code, words.format(path=path) in errors) == (EXIT_CONFIG, True), errors


def test_ctrl_c_is_one_word(capsys):
    assert stopped(lambda: signal.raise_signal(signal.SIGINT)) == EXIT_INTERRUPTED
    assert capsys.readouterr().err == "\nstopped\n"


def test_a_failing_disk_is_one_line(capsys):
    def work():
        raise OSError(errno.ENOSPC, "No space left on device", "runs/mine/run.json")

    assert stopped(work) == EXIT_FAULT
    assert capsys.readouterr().err == "runs/mine/run.json: No space left on device\n"


def test_what_the_terminal_cannot_show_ends_nothing():
    program = (
        "from gpt_pjit.commandline import report_errors\nwith report_errors(): print('a \\u2192 b')"
    )
    result = run([sys.executable, "-c", program], PYTHONIOENCODING="ascii")
    assert result.stdout == "a \\u2192 b\n", result.stderr


def test_flag_types():
    assert comma_separated(" a, b,,a ") == ["a", "b"]
    with pytest.raises(argparse.ArgumentTypeError, match="not a positive integer"):
        positive("two")
