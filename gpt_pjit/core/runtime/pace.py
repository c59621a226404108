"""What holds up the devices: how long they have nothing to do, for want of what, on which host.

Lockstep hides a slow host, since all take its time. So each measures how long its own devices have
no work, from the end of one step until the next is dispatched, and what its main thread does in
that time. The devices of the others have work all the while, and wait inside it.
"""

import statistics
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import jax

from gpt_pjit.core.console import warn

# What the main thread does, and what devices may want.
WANTED = {
    "data": "data",
    "dispatch": "the dispatch of the step",
    "write": "the writing of metrics",
    "rest": "the host",
}
DEVICES = "devices"  # what it does when it waits for them
SLOW_SHARE = 0.1  # of a step; devices that wait longer are worth a line
SLOW_SECONDS = 0.01  # a step; what is shorter is the way of tiny models


class Report(NamedTuple):
    """Of the log interval of a host that ended with step `to`: seconds a step, and how many of them
    its devices wanted for each of `WANTED`.
    """

    to: int
    step: float
    idle: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.idle.values())


class Pace:
    """Measures this host. The main thread says what it does with `part`, and calls `dispatched`."""

    def __init__(self) -> None:
        self._spans: list[tuple[str, float, float]] = []
        self._ends = ThreadPoolExecutor(1, "end of a step")
        self.restart()

    def restart(self) -> None:
        """A log interval begins."""
        self.spent = dict.fromkeys((*WANTED, DEVICES), 0.0)
        self.idle = dict.fromkeys(WANTED, 0.0)

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        stop = time.perf_counter()
        self._spans.append((what, start, stop))
        self.spent[what] += stop - start

    def end_of(self, result: jax.Array) -> Future[float]:
        """When devices have computed `result`."""

        def end() -> float:
            jax.block_until_ready(result)
            return time.perf_counter()

        return self._ends.submit(end)

    def gap(self, done: float, dispatched: float) -> None:
        """Devices were `done` with a step, and the next was `dispatched`: before, or too late."""
        wanted = dict.fromkeys(WANTED, 0.0)
        for what, start, stop in self._spans:
            if what in wanted:
                wanted[what] += max(min(stop, dispatched) - max(start, done), 0.0)
        wanted["rest"] += max(dispatched - done - sum(wanted.values()), 0.0)
        for what, seconds in wanted.items():
            self.idle[what] += seconds
        self._spans = [span for span in self._spans if span[2] > dispatched]

    def metrics(self, steps: int, seconds: float) -> dict[str, float]:
        """Seconds a step: the whole, what the main thread does in it, and devices without work."""
        spent = self.spent | {"rest": max(seconds - sum(self.spent.values()), 0.0)}
        found = {"step": seconds} | spent | {"idle": sum(self.idle.values())}
        return {f"time/{name}": value / steps for name, value in found.items()}

    def report(self, to: int, steps: int, seconds: float) -> Report:
        return Report(to, seconds / steps, {n: idle / steps for n, idle in self.idle.items()})


class Slow(NamedTuple):
    """A host that holds up the others, or all of them (None), and for want of what."""

    process: int | None
    want: str


class Stragglers:
    """Names, once, a host whose devices wait far longer than those of the others, in two log
    intervals in a row, and what all devices wait for.
    """

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}  # of the last judgement, in seconds a step
        self._judged = 0  # the step up to which all have been compared
        self._before: Slow | None = None
        self._named: set[Slow] = set()

    def hear(self, reports: Mapping[int, Report], hosts: Mapping[int, str]) -> None:
        """The newest report of each process, and its host's name."""
        if (to := min(report.to for report in reports.values())) <= self._judged:
            return
        self._judged = to
        before, self._before = self._before, self._judge(reports)
        found = self._before
        if found is None or found != before or found in self._named:
            return
        self._named.add(found)
        worst = reports[found.process or 0]
        times = f"idle {worst.total:.2f} s of each {worst.step:.2f} s step"
        cause = f"{worst.idle[found.want]:.2f} s of that waiting for {WANTED[found.want]}"
        if found.process is None:
            warn(f"devices {times}, {cause}")
        else:
            name = f"process {found.process} ({hosts[found.process]})"
            warn(f"{name} holds up the others: its devices {times}, {cause}")

    def _judge(self, reports: Mapping[int, Report]) -> Slow | None:
        totals = {process: report.total for process, report in reports.items()}
        slowest = max(totals, key=totals.__getitem__)
        others = [total for process, total in totals.items() if process != slowest]
        usual = statistics.median(others) if others else totals[slowest]
        report = reports[slowest]
        much = max(SLOW_SHARE * report.step, SLOW_SECONDS)
        if others:
            self.metrics = {
                "hosts/idle_most": totals[slowest],
                "hosts/idle_median": statistics.median(totals.values()),
                "hosts/slowest": float(slowest),
            }
        want = max(report.idle, key=report.idle.__getitem__)
        if others and totals[slowest] - usual > much:
            return Slow(slowest, want)
        return Slow(None, want) if usual > much else None
