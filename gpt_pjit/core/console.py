"""What a person sees: messages and progress, from one process of a run."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress as Bar, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 15.0  # where no terminal can show a bar

_muted = False


def mute() -> None:
    """Silences this process: another one speaks for the run."""
    global _muted
    _muted = True


def silence_stdout() -> None:
    """Discards further output once the reader of stdout is gone, which is not an error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Console(Console):
    def on_broken_pipe(self) -> None:
        silence_stdout()  # the run continues; rich would exit with 1


_console = _Console(highlight=False, soft_wrap=True)


def say(message: str) -> None:
    if not _muted:
        _console.print(message, markup=False)


def warn(message: str) -> None:
    """Prints to stderr, so that stdout stays machine-readable."""
    if not _muted:
        print(f"warning: {message}", file=sys.stderr)


def megabytes(n: int) -> str:
    return f"{n / 1e6:,.1f} MB"


class Progress:
    """How far a task is: a bar on a terminal, elsewhere a line every few seconds.

    `with Progress("scoring", total) as progress: progress.update(done, "more words")`; `total` is 0
    if it is unknown, and `counted` formats both numbers. The progress of a run goes to stdout, and
    any other to stderr.
    """

    def __init__(
        self,
        task: str,
        total: int,
        *,
        done: int = 0,
        counted: Callable[[int], str] = "{:,}".format,
        on_stdout: bool = False,
    ):
        self._task, self._total, self._counted = task, total, counted
        self._first, self._start = done, time.monotonic()
        self._last_line = self._start
        self._console = _console if on_stdout else Console(stderr=True, highlight=False)
        self._bar: Bar | None = None
        if self._console.is_terminal and not _muted:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[t]}"),
            )
            self._bar = Bar(*columns, TimeRemainingColumn(), console=self._console)
            self._row = self._bar.add_task(task, total=total or None, completed=done, t="")
            self._bar.start()

    def update(self, done: int, text: str = "") -> None:
        """Shows `done` of the total, work before this start included, and `text` after it."""
        of_total = f"/{self._counted(self._total)}" if self._total else ""
        text = f"{self._counted(done)}{of_total}  {text}".rstrip()
        if self._bar:
            self._bar.update(self._row, completed=done, t=text)
            return
        now = time.monotonic()
        is_last = bool(self._total) and done >= self._total
        if _muted or not (is_last or now - self._last_line > SECONDS_BETWEEN_LINES):
            return
        self._last_line = now
        if self._total and done > self._first:
            seconds = (self._total - done) * (now - self._start) / (done - self._first)
            text += f"  {round(seconds) // 60}:{round(seconds) % 60:02d} left"
        self._console.print(f"{self._task} {text}", markup=False, soft_wrap=True)

    def close(self) -> None:
        if self._bar:
            self._bar.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
