"""Where a run's time went: `timeline.jsonl`, one object a line, from all of its starts.

    {"at": 1764168012.5, "seconds": 4.2, "what": "steps", "start": 2, "from": 100, "to": 110,
     "data": 0.1}

`at` is the Unix time at the end of a span, `seconds` its length; the spans of a start follow each
other without gaps. `start` is its number in `run.json`, from 1; `from` and `to` are the steps done
before and after. Unlike those of `metrics.jsonl`, lines of steps that are redone stay. `what` is

- prepare: from the start of the process to the loop, but for
- restore: the reading of a checkpoint, or the making of a first state
- compile: the first step
- steps: the steps of a log interval; in `data` seconds of it devices had no work for want of data
- save, validation, evaluation, sample, depth, profile: what the loop waits for of each
- end: the last moments of a clean end; a start that was killed has none
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Line = dict[str, Any]
NAME = "timeline.jsonl"


class Timeline:
    """The spans of this process, from its start on; `open` says where they are written."""

    def __init__(self) -> None:
        self.step = 0  # at the end of the last span
        self._mark = time.perf_counter() - age()
        self._early: list[Line] = []
        self._start = 0
        self._write: Callable[[Line], None] = self._early.append

    def open(self, start: int, step: int, write: Callable[[Line], None]) -> None:
        """Gives `write` the lines of start number `start`, which begins after `step`."""
        self._start, self.step, self._write = start, step, write
        for line in self._early:
            write(line | {"start": start, "from": step, "to": step})

    def end(self, what: str, step: int | None = None, **more: float) -> Line:
        """Ends a span, and begins the next; `step` is that of the last span if it did none."""
        now, before = time.perf_counter(), self.step
        seconds, self._mark = now - self._mark, now
        self.step = before if step is None else step
        line: Line = {"at": time.time(), "seconds": seconds, "what": what, "start": self._start}
        line |= {"from": before, "to": self.step} | more
        self._write(line)
        return line


def age() -> float:
    """Seconds since this process began; 0 where there is no /proc that says so."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return 0.0
    ticks = int(stat.read_text().rpartition(")")[2].split()[19])  # after boot, by proc(5)
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
