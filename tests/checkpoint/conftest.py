"""The command line, called in the process of the test."""

import pytest

from gpt_pjit.checkpoint import __main__ as command_line


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command line in this process, whose devices are started: exit code and outputs."""
    monkeypatch.setattr(command_line, "start_devices", lambda: None)

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            command_line.main(list(map(str, arguments)))
        return ended.value.code, *capsys.readouterr()

    return call
