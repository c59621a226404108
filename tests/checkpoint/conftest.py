"""The command line, called in the process of the test."""

from functools import partial

import pytest

from tests.helpers import run_command_here


@pytest.fixture
def call(monkeypatch, capsys):
    """Exit code and outputs of `gpt_pjit checkpoint` in this process, whose devices are started."""
    monkeypatch.setattr("gpt_pjit.checkpoint.command.start_devices", lambda: None)
    return partial(run_command_here, capsys, "checkpoint")
