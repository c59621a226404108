"""Traces begin and end where they are asked for, and wait for the steps before."""

import os
import signal
from contextlib import contextmanager

import jax.numpy as jnp
import pytest

from gpt_pjit.commandline import Parser
from gpt_pjit.core.runtime import Profiler, Watch
from gpt_pjit.main import define


def folders(workdir):
    return sorted(path.name for path in (workdir / "profile").glob("*"))


@pytest.fixture
def trained(tmp_path):
    """Steps 1 to 8 under a profiler; `asked` are those before which a signal came."""
    paused = []

    @contextmanager
    def pause(what, step):
        paused.append((what, step))
        yield

    def run(steps, asked=(), last=8):
        profiler = Profiler(tmp_path, steps, pause)
        for step in range(1, last + 1):
            profiler.before(step, step in asked)
            jnp.ones(3).sum().block_until_ready()
        profiler.finish(last)
        return paused

    return run


def test_the_steps_of_the_flag_are_traced(trained, tmp_path):
    assert trained(range(3, 5)) == [("profile", 2), ("profile", 4)]
    assert folders(tmp_path) == ["3"]
    assert [*(tmp_path / "profile" / "3").rglob("*.xplane.pb")]


def test_a_signal_traces_three_steps_and_the_end_of_a_run_ends_a_trace(trained, tmp_path):
    assert trained(range(0), asked=(2, 3, 7)) == [
        ("profile", step) for step in (1, 4, 6, 8)
    ]  # the signal before step 3 came within a trace
    assert folders(tmp_path) == ["2", "7"]


def test_a_folder_that_cannot_be_written_is_a_warning(trained, tmp_path, capsys):
    (tmp_path / "profile").write_text("a file")
    trained(range(3, 5))
    assert "profile" in capsys.readouterr().err


def test_sigusr1_asks_once_and_is_harmless():
    with Watch(60) as watch:
        assert not watch.profile_asked()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert watch.profile_asked()
        assert not watch.profile_asked()


def test_the_flag(capsys):
    parser = Parser(prog="train")
    define(parser)
    assert parser.parse(["--config=x", "--profile=3:5"]).profile == range(3, 6)
    for wrong in ("5:3", "0:4", "3", "a:b", ":"):
        with pytest.raises(SystemExit) as stop:
            parser.parse(["--config=x", f"--profile={wrong}"])
        assert stop.value.code == 78
    assert "is not A:B, a first and a last step; for example 100:102" in capsys.readouterr().err
