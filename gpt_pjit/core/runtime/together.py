"""Hosts that agree before they start, and end together when one of them fails.

They meet in the key-value store of JAX's coordinator, which needs neither devices nor collectives.
With one process, every function here is trivial.
"""

import atexit
import faulthandler
import hashlib
import itertools
import json
import os
import socket
import statistics
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import jax
from jax._src import distributed  # the client of the coordinator has no public name

from gpt_pjit.core.errors import EXIT_FAULT, EXIT_INTERRUPTED, ConfigError, HostFailedError

ROOT = "gpt_pjit"
FAILED, HEARD = f"{ROOT}/failed", f"{ROOT}/heard"
A_DAY = 24 * 60 * 60 * 1000  # milliseconds: tokenising a corpus takes hours; a failure ends a wait
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_HEAR = 5.0

_meetings = itertools.count()
_read: list[str] = []  # the folder of the last meeting, until the next
_state = distributed.global_state  # unlike jax.process_index(), it does not touch a device


class Stopped(KeyboardInterrupt):
    """A signal that ends a run where there is nothing to save; a launcher sends most of them."""

    def __init__(self, code: int, name: str):
        super().__init__(name)
        self.code = code


def everyone(value: Any) -> list[Any]:
    """The values of all processes, in order; a value is small and can be written as JSON.

    A barrier: all processes must make the same calls in the same order.
    """
    client = coordinator()
    if client is None:
        return [value]
    folder = f"{ROOT}/meeting/{next(_meetings)}"
    client.key_value_set(f"{folder}/{_state.process_id:06}", json.dumps(value))
    client.wait_at_barrier(folder.replace("/", "-"), A_DAY)
    if _state.process_id == 0:
        if _read:  # by all, who are here now
            client.key_value_delete(_read.pop())
        _read.append(folder)
    return [json.loads(text) for _, text in sorted(client.key_value_dir_get(folder))]


def from_process_0(value: Any) -> Any:
    """The value of process 0 on all of them; it can be written as JSON, and may be large."""
    client = coordinator()
    if client is None:
        return value
    key = f"{ROOT}/told/{next(_meetings)}"
    if _state.process_id == 0:
        client.key_value_set_bytes(key, zlib.compress(json.dumps(value).encode()))
    else:
        value = json.loads(zlib.decompress(client.blocking_key_value_get_bytes(key, A_DAY)))
    client.wait_at_barrier(key.replace("/", "-"), A_DAY)
    if _state.process_id == 0:
        client.key_value_delete(key)
    return value


def to_process_0(value: bytes) -> list[bytes]:
    """The values of all processes, in order, on process 0; nothing on the others."""
    client = coordinator()
    if client is None:
        return [value]
    folder = f"{ROOT}/results/{next(_meetings)}"
    client.key_value_set_bytes(f"{folder}/{_state.process_id:06}", value)
    client.wait_at_barrier(folder.replace("/", "-"), A_DAY)
    if _state.process_id != 0:
        return []
    values = [content for _, content in sorted(client.key_value_dir_get_bytes(folder))]
    client.key_value_delete(folder)
    return values


def round_trip() -> float:
    """Seconds until the coordinator answers, the median of 11 questions; 0 with one process."""
    client, seconds = coordinator(), []
    if client is None:
        return 0.0
    for question in range(11):
        start = time.perf_counter()
        client.key_value_set(f"{ROOT}/ping/{_state.process_id}/{question}", "")
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


@contextmanager
def all_or_none() -> Iterator[None]:
    """A barrier at the end of the block; a ConfigError on one process ends all of them."""
    error: ConfigError | None = None
    try:
        yield
    except ConfigError as raised:
        error = raised
    errors = everyone(None if error is None else (str(error), error.code))
    if error is not None:
        raise error
    for process, failed in enumerate(errors):
        if failed is not None:
            text, code = failed
            raise HostFailedError(f"process {process}: {text}", code)


def check_agreement(facts: dict[str, Any]) -> None:
    """Raises ConfigError, the same on all processes, if their facts differ."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    if len(set(everyone(digest))) == 1:
        return
    problems = []
    told = everyone({"host": socket.gethostname(), "facts": facts})
    for name in sorted({name for one in told for name in one["facts"]}):
        values = [one["facts"].get(name) for one in told]
        for process, value in enumerate(values):
            if value != values[0]:
                problems.append(
                    f"{name} is {value!r} on process {process} ({told[process]['host']}), but "
                    f"{values[0]!r} on process 0 ({told[0]['host']}); start every host from the "
                    "same checkout and command"
                )
                break  # one host is enough to find the difference
    raise ConfigError(problems, "host agreement check")


def watch_for_failure() -> None:
    """Ends this process when another one fails, even inside a collective or a wait.

    Call once, after the processes have joined.
    """
    client = coordinator()
    if client is None:
        return
    at_an_end = threading.Event()

    def watch() -> None:
        while not at_an_end.wait(SECONDS_BETWEEN_LOOKS):
            try:
                failure = json.loads(client.key_value_try_get(FAILED))
            except jax.errors.JaxRuntimeError:  # none has failed
                continue
            if failure["process"] != _state.process_id:
                _tell(failure)
                client.key_value_set(f"{HEARD}/{_state.process_id}", "")
                _leave(failure["code"], failure["lost"])

    thread = threading.Thread(target=watch, name="watch for failure", daemon=True)
    thread.start()

    def stop() -> None:  # a thread inside the client's code would crash the interpreter at exit
        at_an_end.set()
        thread.join(1)

    atexit.register(stop)


@contextmanager
def ending_together() -> Iterator[None]:
    """A failure inside the block on one process ends all of them, with one code and one line.

    They leave by `os._exit`: threads of libraries, or a waiting collective, would keep them alive.
    """
    try:
        yield
    except BaseException as error:
        if coordinator() is None:
            raise
        code, line = _code_and_line(error)
        if not isinstance(error, ConfigError | HostFailedError | KeyboardInterrupt):
            traceback.print_exception(error)
        end_all(code, line)


def _code_and_line(error: BaseException) -> tuple[int, str]:
    where = f"process {_state.process_id} ({socket.gethostname()})"
    if isinstance(error, HostFailedError):
        return error.code, str(error)
    if isinstance(error, ConfigError):
        return error.code, f"{where}: {error}"
    if isinstance(error, KeyboardInterrupt):
        return getattr(error, "code", EXIT_INTERRUPTED), f"{where}: stopped"
    return EXIT_FAULT, f"{where}: {type(error).__name__}: {error}".split("\n", 1)[0]


def end_all(code: int, line: str, lost: int = 0, stacks_of: tuple[int, ...] = ()) -> NoReturn:
    """Tells the others, and exits; if another process failed first, its code and line count.

    `lost` is how many processes will not hear of it; those in `stacks_of` show what they do.
    """
    failure = {"process": _state.process_id, "code": code, "line": line, "lost": lost}
    failure |= {"stacks_of": stacks_of}
    if coordinator() is None:
        _tell(failure)
        os._exit(code)
    try:
        coordinator().key_value_set(FAILED, json.dumps(failure))
    except jax.errors.JaxRuntimeError:
        time.sleep(SECONDS_TO_HEAR)  # the watcher ends this process first
    else:
        _tell(failure)
    _leave(code, lost)


def _tell(failure: dict[str, Any]) -> None:
    print(failure["line"], file=sys.stderr, flush=True)
    if _state.process_id in failure["stacks_of"]:
        faulthandler.dump_traceback()


def _leave(code: int, lost: int) -> NoReturn:
    """Exits once all others know: JAX aborts a process when another one disappears."""
    client, others = coordinator(), _state.num_processes - 1 - lost
    deadline = time.monotonic() + SECONDS_TO_HEAR
    while others and time.monotonic() < deadline:
        with suppress(jax.errors.JaxRuntimeError):  # nobody yet
            if len(client.key_value_dir_get(HEARD)) >= others:
                break
        time.sleep(0.05)
    if _state.process_id == 0:  # it holds the store, so it leaves last
        time.sleep(1)
    os._exit(code)


def coordinator() -> Any:
    """The coordinator's client; None with one process."""
    return _state.client
