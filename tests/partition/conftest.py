import functools

import pytest

from tests.helpers import run_command_here


@pytest.fixture
def partition(capsys):
    """`partition(*argv)`: exit code, standard output and standard error of the command."""
    return functools.partial(run_command_here, capsys, "partition")
