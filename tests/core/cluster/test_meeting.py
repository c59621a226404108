"""Processes that meet before JAX joins them: who is missing, unexpected or failing is named."""

import contextlib
import os
import re
import socket
import sys
import threading

import pytest

from gpt_pjit.core.errors import EXIT_CONFIG, EXIT_FAULT
from tests.processes import Process, free_address, member, run, wait_for_end, wait_for_line

# process, processes, address, limit, and a failure.
PROGRAM = """
import sys
from gpt_pjit.core.cluster import Cluster, meet, meeting
from gpt_pjit.core.errors import HostFailedError
process, processes, address, limit, failure = sys.argv[1:]
meeting.FIRST_WORD = 1.0
cluster = Cluster("the test", address, int(processes), int(process))
try:
    print(meet(cluster, meeting.Failure(78, failure) if failure else None, float(limit)))
except HostFailedError as error:
    print(error)
    sys.exit(error.code)
"""


class Meeting:
    """Processes at one address, in the order in which they are started."""

    def __init__(self):
        self.address, self.started = free_address(), []

    def start(self, process, processes, *, limit=60, failure="", address=None):
        command = [process, processes, address or self.address, limit, failure]
        self.started.append(Process([sys.executable, "-c", PROGRAM, *command]))
        return self.started[-1]

    def ends(self):
        """(exit code, stdout) of each process; no process says anything unexpected on stderr."""
        ends = wait_for_end(self.started, 60)
        assert not any("Traceback" in end.stderr for end in ends), ends
        return [(end.returncode, end.stdout) for end in ends]


@pytest.fixture
def meeting():
    meeting = Meeting()
    yield meeting
    for process in meeting.started:
        process.kill_group()


def test_all_come(meeting):
    for process in (2, 0, 1):
        meeting.start(process, 3)
    assert meeting.ends() == [(0, f"{meeting.address}\n")] * 3


def test_who_is_missing_is_named_and_the_wait_ends(meeting):
    first = meeting.start(0, 4, limit=4)
    meeting.start(2, 4)
    line = wait_for_line([first], "waiting for")
    assert re.search(r"processes 1, 3 to connect to .*; \d of at most 4 seconds", line), line
    ends = meeting.ends()
    assert len(set(ends)) == 1
    assert ends[0][0] == EXIT_FAULT
    assert f"processes 1, 3 of 4 did not connect to {meeting.address} within 4 sec" in ends[0][1]


def test_process_0_is_missing(meeting):
    meeting.start(1, 2, limit=3)
    (code, line), = meeting.ends()  # fmt: skip
    assert code == EXIT_FAULT
    assert f"process 0 did not listen at {meeting.address} within 3 seconds" in line


@pytest.mark.parametrize(
    ("others", "line"),
    [
        ([(1, 2), (1, 3)], r"process 1 \(.*\) was started as one of 2 processes, but process 0"),
        ([(3, 3), (1, 3)], r"process 3 \(.*\) was started as one of 3 .* and ids below it"),
        (
            [(1, 3), (1, 3)],
            "process 1 joined twice, from .* and from .*; give each process its own",
        ),
        ([(0, 3), (2, 3)], "process 0 joined twice"),
    ],
)
def test_who_is_not_expected_is_named_on_all(meeting, others, line):
    wait_for_line([meeting.start(0, 3)], "waiting for")
    for process, processes in others:
        meeting.start(process, processes)
    ends = meeting.ends()
    assert len(set(ends)) == 1
    assert ends[0][0] == EXIT_CONFIG
    assert re.match(line, ends[0][1])


@pytest.mark.parametrize("failing", [0, 2])
def test_a_failure_before_the_meeting_ends_all(meeting, failing):
    for process in range(3):
        meeting.start(process, 3, failure="no such flag" if process == failing else "")
    assert meeting.ends() == [(EXIT_CONFIG, "no such flag\n")] * 3


def test_one_that_is_killed_may_come_again(meeting):
    first = meeting.start(0, 3)
    meeting.start(1, 3)
    wait_for_line([first], "waiting for process 2 to connect")  # only 2 is missing
    meeting.started.pop().kill_group()
    meeting.start(1, 3)
    meeting.start(2, 3)
    assert meeting.ends() == [(0, f"{meeting.address}\n")] * 3


def test_strangers_are_ignored(meeting):
    wait_for_line([meeting.start(0, 2)], "waiting for")
    host, _, port = meeting.address.partition(":")
    for words in (b"GET / HTTP/1.1\r\n\r\n", b"\x00\xff\n", b"{}\n", b"[1]\n", b""):
        with socket.create_connection((host, int(port))) as stranger:
            stranger.sendall(words)
    meeting.start(1, 2)
    assert meeting.ends() == [(0, f"{meeting.address}\n")] * 2


@contextlib.contextmanager
def another_program(address, words):
    """It answers whatever it is asked with `words`, as JAX's coordinator does, and hangs up."""
    host, _, port = address.partition(":")
    with socket.create_server((host, int(port))) as server:

        def answer():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    # Without the question read, closing would reset the line and lose the answer.
                    connection.recv(2**16)
                    connection.sendall(words)
                    connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        yield
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


GRPC = b"\x00\x00\x06\x04\x00"


@pytest.mark.parametrize(
    ("process", "words", "line"),
    [
        (2, GRPC, "another program answers at ADDRESS, perhaps a run that began without process 2"),
        (0, GRPC, "another program answers at ADDRESS, perhaps a run that began without process 0"),
        (0, b"", "cannot listen at ADDRESS: Address already in use; set JAX_COORDINATOR_ADDRESS"),
    ],
)
def test_an_address_that_is_taken(meeting, process, words, line):
    """By a run that began without this process, or by anything else: it may end, so retry."""
    with another_program(meeting.address, words):
        meeting.start(process, 3)
        ((code, output),) = meeting.ends()
    assert code == EXIT_FAULT
    assert line.replace("ADDRESS", meeting.address, 1) in output


def test_the_name_of_a_host_is_no_loopback_address(meeting):
    """Debian gives a host's own name 127.0.1.1, where no other host can come."""
    name = socket.gethostname()
    port = meeting.address.partition(":")[2]
    for process in (0, 1):
        meeting.start(process, 2, address=f"{name}:{port}")
    ends = meeting.ends()
    assert len(set(ends)) == 1
    assert ends[0][0] == 0
    host = ends[0][1].partition(":")[0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        if probe.connect_ex(("192.0.2.1", 9)) == 0:
            assert not host.startswith("127."), os.environ.get("HOSTNAME")


def test_a_command_that_joins_no_others_does_not_wait_for_them(meeting):
    command = [sys.executable, "-m", "gpt_pjit.data", "--nonsense"]
    result = run(command, seconds=30, **member(0, 2, meeting.address))
    assert result.returncode == EXIT_CONFIG
