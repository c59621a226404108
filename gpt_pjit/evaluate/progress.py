"""How far an evaluation is, on standard error: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def counting(task: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields `advance(done_now)`; only process 0 shows anything."""
    console = Console(stderr=True)
    if jax.process_index() != 0:
        yield lambda done_now: None
    elif not console.is_terminal:
        yield _lines(task, total)
    else:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
            row = bar.add_task(task, total=total)
            yield lambda done_now: bar.update(row, advance=done_now)


def _lines(task: str, total: int) -> Callable[[int], None]:
    start = shown = time.monotonic()
    done = 0

    def advance(done_now: int) -> None:
        nonlocal shown, done
        done, now = done + done_now, time.monotonic()
        if now - shown < SECONDS_BETWEEN_LINES or done in (0, total):
            return
        shown = now
        left = (total - done) * (now - start) / done
        print(f"{task}: {done:,} of {total:,}, {left:,.0f} s left", file=sys.stderr)

    return advance
