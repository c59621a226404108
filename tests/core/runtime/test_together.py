"""Processes that agree, and end together: the same exit code and the same line on all."""

import sys
import time

import pytest

from gpt_pjit.core.errors import EXIT_CONFIG, EXIT_FAULT
from tests.processes import start_run, wait_for_end

PROCESSES = 3
PROGRAM = """
import sys, time
import jax
import numpy as np
from jax.experimental import multihost_utils
from gpt_pjit.config import MeshConfig
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.runtime import (
    all_or_none, check_agreement, ending_together, everyone, from_process_0, initialize_devices,
    to_process_0,
)
from gpt_pjit.core.runtime.together import coordinator

initialize_devices(MeshConfig())
case, failing, me = sys.argv[1], int(sys.argv[2]), jax.process_index()
with ending_together():
    check_agreement({"optim.peak_lr": 0.1, "jax": "1"})
    if case == "disagreement":
        check_agreement({"optim.peak_lr": 0.2 if me == failing else 0.1, "jax": "1"})
    if case == "none":
        words = {"text": "\u732b" * 2**20, "numbers": [1, 2.5, None]}
        assert from_process_0(words if me == 0 else None) == words
        assert from_process_0([] if me == 0 else None) == []
        own = bytes([me]) * me * 2**22  # none, 4 MB, 8 MB
        expected = [b"", b"\1" * 2**22, b"\2" * 2**23] if me == 0 else []
        assert to_process_0(own) == expected
        assert [everyone(number + me) for number in range(3)][2] == [2, 3, 4]
        left = coordinator().key_value_dir_get("gpt_pjit/meeting")
        assert me or len(left) <= 2 * jax.process_count()  # of this meeting and the next
    with all_or_none():
        if case == "input" and me == failing:
            raise ConfigError(["x.txt cannot be read"], "data.text")
    if case == "crash":
        if me == failing:
            raise RuntimeError("boom")
        time.sleep(60)
    if case == "collective":
        if me == failing:
            raise RuntimeError("boom")
        multihost_utils.process_allgather(np.ones(3))
print("done")
"""


def ends_of(case, failing):
    """(exit code, stderr) of each process, and the seconds until all had ended."""
    start = time.monotonic()
    command = [sys.executable, "-c", PROGRAM, case, failing]
    ends = wait_for_end(start_run(PROCESSES, command), 120)
    return [(end.returncode, end.stderr) for end in ends], time.monotonic() - start


@pytest.mark.parametrize(
    ("case", "failing", "code", "line"),
    [
        ("input", 1, EXIT_CONFIG, "data.text has 1 problem:\n  x.txt cannot be read"),
        pytest.param("collective", 2, EXIT_FAULT, "RuntimeError: boom", marks=pytest.mark.slow),
        pytest.param("input", 0, EXIT_CONFIG, "x.txt cannot be read", marks=pytest.mark.slow),
        pytest.param("crash", 0, EXIT_FAULT, "RuntimeError: boom", marks=pytest.mark.slow),
        pytest.param("crash", 2, EXIT_FAULT, "RuntimeError: boom", marks=pytest.mark.slow),
        pytest.param("collective", 0, EXIT_FAULT, "RuntimeError: boom", marks=pytest.mark.slow),
        pytest.param("disagreement", 2, EXIT_CONFIG, "is 0.2 on process 2", marks=pytest.mark.slow),
    ],
)
def test_all_end_with_one_code_and_one_line(case, failing, code, line):
    ends, seconds = ends_of(case, failing)
    assert [end[0] for end in ends] == [code] * PROCESSES, ends
    assert all(line in end[1] for end in ends), ends
    assert seconds < 40  # of which some 5 are for starting, on an idle machine


def test_nothing_fails_where_nothing_fails():
    ends, _ = ends_of("none", 0)
    assert [end[0] for end in ends] == [0] * PROCESSES, ends
