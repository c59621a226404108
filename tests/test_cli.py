"""What command lines share: Ctrl-C, and files that are no configs."""

import gc
import signal
import subprocess
import sys
import time
import weakref

import pytest

from gpt_pjit.commandline import report_errors
from gpt_pjit.core.errors import EXIT_CONFIG, EXIT_INTERRUPTED
from tests.helpers import ROOT


def stopped(work):
    """The exit code of a command that does `work` and is stopped by it."""
    with pytest.raises(SystemExit) as stop, report_errors():
        work()
    return stop.value.code


def test_ctrl_c_is_one_word(capsys):
    before = signal.getsignal(signal.SIGINT)
    assert stopped(lambda: signal.raise_signal(signal.SIGINT)) == EXIT_INTERRUPTED
    assert capsys.readouterr().err == "\nstopped\n"
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_is_not_lost_in_a_callback_of_the_garbage_collector():
    """Python prints the exception of such a callback, and goes on."""

    def callback(phase, _):
        if phase == "start":
            signal.raise_signal(signal.SIGINT)

    def work():
        gc.callbacks.append(callback)
        try:
            gc.collect()
        finally:
            gc.callbacks.remove(callback)
        time.sleep(5)

    assert stopped(work) == EXIT_INTERRUPTED


def test_ctrl_c_is_not_lost_in_a_callback_of_a_weak_reference():
    class Thing:
        pass

    def work():
        thing = Thing()
        kept = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
        del thing
        time.sleep(5)
        raise AssertionError(kept)

    assert stopped(work) == EXIT_INTERRUPTED


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("# Title\n\nSome words.", "config.py is no Python file, as configs are: invalid syntax"),
        ("def get_config():\n    return 3\n", "get_config() of {path} gives no config; here are"),
    ],
)
def test_what_is_no_config_is_said(tmp_path, content, words):
    path = tmp_path / "config.py"
    path.write_text(content)
    command = [sys.executable, "-m", "gpt_pjit.partition", "lint", f"--config={path}"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert result.returncode == EXIT_CONFIG
    assert words.format(path=path) in result.stderr
    assert "Traceback" not in result.stderr
