"""The command line, called in the process of the test."""

import pytest

from gpt_pjit.checkpoint import command
from gpt_pjit.commandline import run_command


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command line in this process, whose devices are started: exit code and outputs."""
    monkeypatch.setattr(command, "start_devices", lambda: None)

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            run_command(
                "gpt_pjit.checkpoint.command", "gpt_pjit checkpoint", list(map(str, arguments))
            )
        return ended.value.code, *capsys.readouterr()

    return call
