"""Processes meet before JAX joins them: one that is missing, unexpected or failing is named.

Process 0 listens at the cluster's address until all have come. Each says who it is and waits for
one line: all have come, or the failure that ends all of them. JAX's coordinator then takes over the
address. JAX alone waits for minutes in silence, and never learns of a process that fails before it
joins.
"""

import asyncio
import contextlib
import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from gpt_pjit.core.cluster.discovery import Cluster, find_cluster
from gpt_pjit.core.console import warn
from gpt_pjit.core.errors import EXIT_CONFIG, EXIT_FAULT, ConfigError, HostFailedError

SECONDS_TO_MEET = 300.0
SECONDS_TO_TELL = 60.0  # in which a process that has failed can still tell the others
FIRST_WORD, BETWEEN_WORDS = 5.0, 30.0  # seconds between lines that say who is missing
SHOWN = 8  # of the missing

_expected = False  # others wait for this process, or will


@dataclass(frozen=True)
class Failure:
    """What all processes end with: an exit code, and a line that names the process at fault."""

    code: int
    line: str


@dataclass(frozen=True)
class Guest:
    """How a process introduces itself, with its failure if it has one."""

    process: int
    processes: int
    host: str
    failure: Failure | None = None


def meet(cluster: Cluster, failure: Failure | None = None, limit: float = SECONDS_TO_MEET) -> str:
    """Waits until all processes have come; returns the address of process 0, its host as a number.

    `limit` is in seconds.
    Raises HostFailedError, on all processes, if one has a `failure`, is missing or unexpected.
    """
    global _expected
    patience = _Patience(min(limit, SECONDS_TO_TELL) if failure else limit)
    me = Guest(cluster.process, cluster.processes, socket.gethostname(), failure)
    host, port = _resolved(cluster, patience)
    if me.process == 0:
        failure = asyncio.run(_Meeting(me, patience).hold(host, port))
    else:
        failure = _visit(me, host, port, patience)
    _expected = False
    if failure:
        raise HostFailedError(failure.line, failure.code)
    return _written(host, port)


def expect_meeting() -> None:
    """This process runs a command that joins others, if there are any."""
    global _expected
    _expected = True


def end_before_meeting(code: int, text: str) -> None:
    """Ends all processes, if this one has others that it has yet to meet; else just returns."""
    try:
        cluster = find_cluster("--distributed" in sys.argv) if _expected else None
    except ConfigError:
        return  # nothing says where the others are
    if cluster is None:
        return
    line = f"process {cluster.process} ({socket.gethostname()}): {text}"
    print(line, file=sys.stderr, flush=True)
    try:
        meet(cluster, Failure(code, line))
    except HostFailedError as first:
        if str(first) != line:
            print(first, file=sys.stderr)
        sys.exit(first.code)


class _Patience:
    """Says from time to time what a process waits for, until the limit."""

    def __init__(self, limit: float):
        self.limit, self._start = limit, time.monotonic()
        self._next = self._start + FIRST_WORD

    @property
    def ended(self) -> bool:
        return time.monotonic() >= self._start + self.limit

    def until_next(self) -> float:
        """Seconds until there is something to say, or the limit is reached."""
        return max(0.0, min(self._next, self._start + self.limit) - time.monotonic())

    def say(self, what: str) -> None:
        if time.monotonic() >= self._next and not self.ended:
            self._next += BETWEEN_WORDS
            waited = time.monotonic() - self._start
            warn(f"waiting for {what}; {waited:.0f} of at most {self.limit:.0f} seconds")

    def shorten(self) -> None:
        """All that is left to do is to tell a failure."""
        self._start, self.limit = time.monotonic(), min(self.limit, SECONDS_TO_TELL)


class _Meeting:
    """Process 0, where all others come."""

    def __init__(self, me: Guest, patience: _Patience):
        self._me, self._patience, self._failure = me, patience, me.failure
        self._here = {me.process: me}
        self._told = 0
        self._lines: set[asyncio.StreamWriter] = set()
        self._guests: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()

    async def hold(self, host: str, port: int) -> Failure | None:
        """Listens until all have come or the limit is reached; tells all how it ended."""
        self._address = _written(host, port)
        try:
            server = await asyncio.start_server(self._welcome, host, port)
        except OSError as error:
            reason = f"cannot listen at {self._address}: {os.strerror(error.errno or 0)}"
            remedy = "set JAX_COORDINATOR_ADDRESS=HOST:PORT to a free port of its host"
            code = EXIT_FAULT if error.errno == errno.EADDRINUSE else EXIT_CONFIG
            failure = Failure(code, f"{_name(self._me)} {reason}; {remedy}")
            # Another process 0 may be there; the two of them end together.
            alike = Guest(self._me.process, self._me.processes, self._me.host, failure)
            with contextlib.suppress(ConnectionError):
                return _ask(alike, host, port)
            return failure
        try:
            await self._wait()
            self._tell(self._lines)
        finally:
            server.close()
        return self._failure

    async def _wait(self) -> None:
        while missing := sorted(set(range(self._me.processes)) - self._here.keys()):
            if self._failure and self._told >= self._me.processes - 1:
                return
            if self._patience.ended:
                late = f"{_processes(missing)} of {self._me.processes} did not connect to"
                remedy = "start it, or check that its host can reach that address"
                line = f"{late} {self._address} within {self._patience.limit:.0f} seconds; {remedy}"
                self._failure = self._failure or Failure(EXIT_FAULT, line)
                return
            self._patience.say(f"{_processes(missing)} to connect to {self._address}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), self._patience.until_next())
            self._news.clear()

    def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A coroutine here would be a task whose cancellation Python 3.11 reports as an error.
        self._guests.add(asyncio.create_task(self._receive(reader, writer)))

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        guest = None
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # gone, or not ours
            guest = _introduced(await reader.readline())
        if guest is None:
            writer.close()
            return
        self._lines.add(writer)
        if self._failure is None and (failure := self._misfit(guest)):
            self._failure = failure
            self._patience.shorten()
        if self._failure:
            self._tell(self._lines)
        self._news.set()
        with contextlib.suppress(OSError):
            await reader.read()  # until it leaves
        self._lines.discard(writer)
        if self._here.get(guest.process) is guest:
            del self._here[guest.process]  # it may come again

    def _misfit(self, guest: Guest) -> Failure | None:
        """Notes who has come; the failure, if the guest has one or is not expected."""
        me, other = self._me, self._here.get(guest.process)
        if guest.processes != me.processes or guest.process >= me.processes:
            problem = (
                f"{_name(guest)} was started as one of {guest.processes} processes, but "
                f"{_name(me)} as one of {me.processes}; give all the same number, and ids below it"
            )
        elif other:
            hosts = f"from {other.host} and from {guest.host}"
            problem = f"process {guest.process} joined twice, {hosts}; give each process its own id"
        else:
            self._here[guest.process] = guest
            return guest.failure
        return Failure(EXIT_CONFIG, problem)

    def _tell(self, lines: Iterable[asyncio.StreamWriter]) -> None:
        word = json.dumps(asdict(self._failure) if self._failure else None).encode()
        for line in list(lines):
            line.write(word + b"\n")
            line.close()
            self._told += 1
            self._lines.discard(line)


def _introduced(line: bytes) -> Guest:
    fields = json.loads(line)
    failure = fields.pop("failure")
    return Guest(**fields, failure=failure and Failure(**failure))


def _visit(me: Guest, host: str, port: int, patience: _Patience) -> Failure | None:
    while not patience.ended:
        with contextlib.suppress(ConnectionError):
            return _ask(me, host, port)
        patience.say(f"process 0 to listen at {_written(host, port)}")
        time.sleep(0.2)
    line = f"process 0 did not listen at {_written(host, port)} within {patience.limit:.0f} seconds"
    return me.failure or Failure(EXIT_FAULT, f"{line}; start it, or check that it can be reached")


def _ask(me: Guest, host: str, port: int) -> Failure | None:
    """Introduces this process; what process 0 answers. ConnectionError if nobody is there."""
    try:
        with socket.create_connection((host, port), timeout=10) as line:
            line.settimeout(SECONDS_TO_MEET + 10)  # process 0 gives up before
            line.sendall(json.dumps(asdict(me)).encode() + b"\n")
            answer = line.makefile("rb").readline()
    except OSError as error:
        raise ConnectionError from error
    if not answer:
        raise ConnectionError
    try:
        failure = json.loads(answer)
    except ValueError:
        where = f"another program answers at {_written(host, port)}"
        remedy = "set JAX_COORDINATOR_ADDRESS=HOST:PORT to a free port, or end that program"
        problem = f"{where}, perhaps a run that began without {_name(me)}; {remedy}"
        return Failure(EXIT_FAULT, problem)  # it may be about to end
    return Failure(**failure) if failure else None


def _resolved(cluster: Cluster, patience: _Patience) -> tuple[str, int]:
    """The address of process 0 as a number: with a name, JAX would listen on every interface."""
    name, _, port = cluster.address.rpartition(":")
    name = name.strip("[]")
    while True:
        try:
            found = socket.getaddrinfo(name, int(port), type=socket.SOCK_STREAM)
            break
        except socket.gaierror as error:
            if patience.ended:
                problem = f"the host of process 0, {name}, has no address: {error.strerror}"
                raise ConfigError([problem], cluster.source) from None
            patience.say(f"the name {name}, the host of process 0, to resolve")  # of a new pod
            time.sleep(0.5)
    host = str(min(found, key=lambda one: one[0] != socket.AF_INET)[4][0])
    if host.startswith("127.") and name not in ("localhost", host):
        host = _own_address() or host  # Debian gives a host's own name 127.0.1.1
    return host, int(port)


def _own_address() -> str | None:
    """The address that this host uses towards others."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # an address of documents; nothing is sent
        return str(probe.getsockname()[0])
    return None


def _written(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _name(guest: Guest) -> str:
    return f"process {guest.process} ({guest.host})"


def _processes(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:SHOWN]))
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return f"process{'es' if len(numbers) > 1 else ''} {shown}{more}"
