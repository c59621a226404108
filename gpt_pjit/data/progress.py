"""Progress of long work on text, on standard error: a bar on a terminal, else a few lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 30

Advance = Callable[[int, int, int], None]


@contextmanager
def progress(task: str, total_bytes: int) -> Iterator[Advance]:
    """Yields `advance(bytes_read, text_bytes, tokens)`; `total_bytes` to read, 0 if unknown."""
    console = Console(stderr=True)
    rates = _Rates()
    if not console.is_terminal:
        yield _lines(task, total_bytes, rates)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[rates]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        row = bar.add_task(task, total=total_bytes or None, rates="")

        def advance(bytes_read: int, text_bytes: int, tokens: int) -> None:
            rates.add(text_bytes, tokens)
            bar.update(row, advance=bytes_read, rates=str(rates))

        yield advance


class _Rates:
    """MB of text a second, and tokens so far."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._text_bytes = self._tokens = 0

    def add(self, text_bytes: int, tokens: int) -> None:
        self._text_bytes += text_bytes
        self._tokens += tokens

    def __str__(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        speed = f"{self._text_bytes / 1e6 / seconds:,.1f} MB/s"
        return f"{speed}, {self._tokens:,} tokens" if self._tokens else speed


def _lines(task: str, total_bytes: int, rates: _Rates) -> Advance:
    start = shown = time.monotonic()
    done = 0

    def advance(bytes_read: int, text_bytes: int, tokens: int) -> None:
        nonlocal shown, done
        rates.add(text_bytes, tokens)
        done, now = done + bytes_read, time.monotonic()
        is_done = total_bytes and done >= total_bytes
        if not is_done and now - shown < SECONDS_BETWEEN_LINES:
            return
        shown = now
        line = f"{task}: {done / 1e6:,.1f} of {total_bytes / 1e6:,.1f} MB, {rates}"
        left = (total_bytes - done) * (now - start) / max(done, 1)
        print(line, "done" if is_done else f"{left:,.0f} s left", sep=", ", file=sys.stderr)

    return advance
