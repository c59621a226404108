"""What a run does about signals, hosts that are lost, and hosts that are stuck.

The run ticks: after every step, and after every batch of an evaluation. All processes tick alike,
so a tick is where they can stop together. A thread follows the ticks. It sees a signal even while
the main thread waits for a device, and hears of one that reached another process.

With several processes each tells process 0, twice a second, that it lives, how far it is, and
whether it waits for its devices: one that is stuck outside of them is the one that others wait for.
With it goes what the host has measured of its own pace. Process 0 tells the rest.
"""

import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NamedTuple, Self, TypeVar

import jax

from gpt_pjit.core.console import say
from gpt_pjit.core.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, EXIT_STUCK
from gpt_pjit.core.runtime.pace import Report, Stragglers
from gpt_pjit.core.runtime.together import ROOT, Stopped, coordinator, end_all

T = TypeVar("T")

STOP, BEATS, TICKS = f"{ROOT}/stop", f"{ROOT}/beats", f"{ROOT}/ticks"
CODES = {
    signal.SIGINT: EXIT_INTERRUPTED,
    signal.SIGTERM: EXIT_PREEMPTED,
    signal.SIGHUP: EXIT_PREEMPTED,
}
PROFILE = signal.SIGUSR1  # asks this process for a trace
SECONDS_BETWEEN_LOOKS = 0.25
SECONDS_BETWEEN_BEATS = 0.5
LOST_AFTER = 8.0  # seconds without a beat; JAX needs 15 to 30, and names nobody
NO_SIGN = f"no sign of life for {LOST_AFTER:.0f} s"
SLOW_AFTER = 3600.0  # compiling, restoring and saving may take so long
MUST_LEAVE_AFTER = 5.0  # of a signal where there is nothing to save


class StopRequested(Exception):  # noqa: N818 - not an error
    """Raised inside `Watch.ticking` where the processes have agreed to stop."""


class Watch:
    """Use as a context manager around all of a run, in the main thread.

    `patience` is how many seconds, and ten of the slowest tick so far, may pass without a tick.
    `code` is the exit code of a run that was stopped, the same on all processes.
    """

    def __init__(self, patience: float):
        self._patience = patience
        self._lock = threading.Lock()  # held while the processes agree on the last tick
        self._ticks = 0
        self._stop_at: int | None = None
        self._stoppable = False  # whether a stop waits for a tick, where the state is saved
        self._waiting = False
        self._slow = True  # until the first tick: compiling
        self._judged = False  # whether it can be stuck; tokenising a corpus may take days
        self._slowest = 0.0
        self._since = time.monotonic()
        self._signals: list[int] = []
        self._report: Report | None = None
        self.stragglers = Stragglers()  # on process 0
        self._profile_asked = False
        self.code = EXIT_PREEMPTED

    def tick(self) -> bool:
        """Call after each piece of work; True once the run must stop, which is the same tick on
        all processes.
        """
        with self._lock:
            now = time.monotonic()
            if not self._slow:
                self._slowest = max(self._slowest, now - self._since)
            self._ticks, self._since = self._ticks + 1, now
            self._slow, self._stoppable = False, True
            return self._stop_at is not None and self._ticks >= self._stop_at

    def ticking(self, pieces: Iterable[T], slow: bool = False) -> Iterator[T]:
        """The pieces, with a tick after each; StopRequested where the run must stop. `slow` if what
        follows a tick may take long: compiling for a new shape, or the work of process 0 alone.
        """
        for piece in pieces:
            yield piece
            if self.tick():
                raise StopRequested
            self._slow = slow

    @contextmanager
    def slow(self) -> Iterator[None]:
        """The block may take long before its first tick, or without one: restoring, compiling,
        saving.
        """
        self._judged, self._slow, self._since = True, True, time.monotonic()
        yield
        self._slow, self._since = True, time.monotonic()

    def saved(self) -> None:
        """Nothing is left to save: from now on a signal ends the run at once."""
        self._stoppable = False

    @contextmanager
    def on_devices(self) -> Iterator[None]:
        """The block waits for devices, and so perhaps for other hosts."""
        self._waiting = True
        yield
        self._waiting = False

    def profile_asked(self) -> bool:
        """Whether SIGUSR1 has come since the last call."""
        asked, self._profile_asked = self._profile_asked, False
        return asked

    def _ask_for_profile(self, *_: object) -> None:
        self._profile_asked = True

    def tell(self, report: Report) -> None:
        """Goes to process 0 with the next beat, which compares hosts."""
        self._report = report
        if coordinator() is None:
            self.stragglers.hear({0: report}, {})

    def __enter__(self) -> Self:
        self._handlers = {number: signal.signal(number, self._handle) for number in CODES}
        self._read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        self._write_end = write_end
        self._handlers[PROFILE] = signal.signal(PROFILE, self._ask_for_profile)
        # The number of a signal is written there at once, even while the main thread is in C.
        self._wakeup = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, *_: object) -> None:
        if isinstance(error, jax.errors.JaxRuntimeError) and coordinator() is not None:
            # A collective has failed, perhaps since a host is lost: then the beats will name it,
            # and end all. Otherwise the error is our own.
            time.sleep(LOST_AFTER + 2)
        self._over.set()
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._thread.join()
        os.close(self._read_end)
        os.close(self._write_end)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if not self._stoppable:  # nothing to save: Python cleans up on the way out
            raise Stopped(CODES[signal.Signals(number)], _name(number))

    def _follow(self) -> None:
        client, beats = coordinator(), _Beats(self.stragglers)
        looked = time.monotonic()
        while not self._over.is_set():
            if select.select([self._read_end], [], [], SECONDS_BETWEEN_LOOKS)[0]:
                for number in os.read(self._read_end, 64):
                    if number in CODES:
                        self._signalled(number)
            if self._stop_at is None and beats.stop:
                self._agree(beats.stop)
            now = time.monotonic()
            if now - looked > SECONDS_BETWEEN_LOOKS + LOST_AFTER / 2:
                self._since = now  # the whole process was asleep, as with Ctrl-Z
            looked = now
            allowed = SLOW_AFTER if self._slow else self._patience + 10 * self._slowest
            stuck = self._judged and now - self._since > allowed
            if client is not None:
                beats.beat(self._ticks, stuck, self._waiting, self._report)
            elif stuck:
                end_all(EXIT_STUCK, f"stuck: no progress for {allowed:.0f} s", stacks_of=(0,))
        with suppress(jax.errors.JaxRuntimeError):  # process 0 may have gone
            beats.end()

    def _signalled(self, number: int) -> None:
        """A signal has reached this process. The second one ends it at once."""
        self._signals.append(number)
        if len(self._signals) > 1:
            print("stopped without saving", file=sys.stderr, flush=True)
            os._exit(128 + number)
        if not self._stoppable:
            self._over.wait(MUST_LEAVE_AFTER)
            if not self._over.is_set():  # the main thread is in C, such as a compile
                end_all(CODES[signal.Signals(number)], f"{_name(number)}: nothing to save")
            return
        request = {"signal": number, "host": socket.gethostname()}
        if (client := coordinator()) is None:
            self._agree(request)
            return
        with suppress(jax.errors.JaxRuntimeError):  # another process was first
            client.key_value_set(STOP, json.dumps(request))

    def _agree(self, request: dict[str, Any]) -> None:
        """Sets the last tick: one after the furthest of any process, none of which moves here."""
        with self._lock:
            ticks = [self._ticks]
            if (client := coordinator()) is not None:
                client.key_value_set(f"{TICKS}/{jax.process_index()}", str(self._ticks))
                while len(ticks) < jax.process_count() and not self._over.wait(0.02):
                    ticks = [int(text) for _, text in client.key_value_dir_get(TICKS)]
            self._stop_at = max(ticks) + 1
            self.code = CODES[signal.Signals(request["signal"])]
        where = f" on {request['host']}" if jax.process_count() > 1 else ""
        again = "; press again to stop without saving" if request["signal"] == signal.SIGINT else ""
        say(f"{_name(request['signal'])}{where}: saving{again}")


class _Beat(NamedTuple):
    """A sign of life: `stuck` without progress, perhaps while `waiting` for devices; the `stop` is
    a signal that some process has received, and the `report` that of its last log interval.
    """

    number: int
    ticks: int
    stuck: bool
    waiting: bool
    host: str
    stop: dict[str, Any] | None
    report: list[Any] | None


class _Beats:
    """Signs of life in the coordinator's store.

    Process 0 looks for others whose have stopped, and the others for those of process 0.
    """

    def __init__(self, stragglers: Stragglers) -> None:
        self._stragglers = stragglers
        self._count = 0
        self._last = 0.0
        self.stop: dict[str, Any] | None = None
        self._heard: dict[int, tuple[_Beat, float]] = {}  # the last beat of each, and when it came

    def beat(self, ticks: int, stuck: bool, waiting: bool, report: Report | None) -> None:
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_BEATS:
            return
        if now - self._last > LOST_AFTER / 2:
            self._heard = {}  # this process was asleep, and heard nobody
        self._last, self._count = now, self._count + 1
        client, me = coordinator(), jax.process_index()
        if me == 0:
            self.stop = self.stop or _get(STOP)
        elif not self._process_0_answers(now):
            return
        host, told = socket.gethostname(), None if report is None else list(report)
        own = _Beat(self._count, ticks, stuck, waiting, host, self.stop, told)
        client.key_value_set(f"{BEATS}/{me}", json.dumps(own), allow_overwrite=True)
        if me == 0:
            for key, text in client.key_value_dir_get(BEATS):
                self._hear(int(key.rsplit("/", 1)[1]), text, now)
            self._judge(now)
            self._compare()

    def end(self) -> None:
        """The last beat: silence from now on means nothing."""
        if coordinator() is not None:
            key = f"{BEATS}/{jax.process_index()}"
            coordinator().key_value_set(key, json.dumps(None), allow_overwrite=True)

    def _hear(self, process: int, text: str, now: float) -> None:
        fields, (last, _) = json.loads(text), self._heard.get(process, (None, 0.0))
        if fields is None:
            self._heard.pop(process, None)
        elif (beat := _Beat(*fields)) != last:
            self._heard[process] = beat, now

    def _process_0_answers(self, now: float) -> bool:
        answered = True
        try:  # with a limit, unlike other questions, which a cut network would hold for ever
            self._hear(0, coordinator().blocking_key_value_get(f"{BEATS}/0", 2000), now)
        except jax.errors.JaxRuntimeError:
            answered = 0 not in self._heard  # it has not begun, or has ended
        if 0 in self._heard:
            beat, then = self._heard[0]
            self.stop = beat.stop
            if time.monotonic() - then > LOST_AFTER:
                line = f"process 0 ({beat.host}) is lost: {NO_SIGN}"
                print(line, file=sys.stderr, flush=True)
                os._exit(EXIT_STUCK)
        return answered

    def _judge(self, now: float) -> None:
        beats = {process: beat for process, (beat, _) in self._heard.items()}
        lost = [p for p, (_, then) in self._heard.items() if now - then > LOST_AFTER]
        if lost:
            line = f"{_named(lost, beats)} is lost: {NO_SIGN}"
            end_all(EXIT_STUCK, line, lost=len(lost))
        if len(beats) == jax.process_count() and all(beat.stuck for beat in beats.values()):
            behind = min(beat.ticks for beat in beats.values())
            guilty = [process for process, beat in beats.items() if not beat.waiting]
            guilty = guilty or [process for process, beat in beats.items() if beat.ticks == behind]
            line = f"stuck: {_named(guilty, beats)} makes no progress"
            end_all(EXIT_STUCK, line, stacks_of=tuple(guilty))

    def _compare(self) -> None:
        """Looks for stragglers, once each host has told of a log interval."""
        beats = {process: beat for process, (beat, _) in self._heard.items()}
        reports = {process: Report(*beat.report) for process, beat in beats.items() if beat.report}
        if len(reports) == jax.process_count():
            hosts = {process: beat.host for process, beat in beats.items()}
            self._stragglers.hear(reports, hosts)


def _named(processes: list[int], beats: dict[int, _Beat]) -> str:
    return ", ".join(f"process {process} ({beats[process].host})" for process in processes)


def _get(key: str) -> Any:
    try:
        return json.loads(coordinator().key_value_try_get(key))
    except jax.errors.JaxRuntimeError:  # not there
        return None


def _name(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
