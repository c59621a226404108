"""What a person sees: messages and a progress bar, from process 0 only."""

from __future__ import annotations

import os
import sys
import time

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress as Bar, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 15.0  # where there is no terminal to draw a bar on


def forget_reader() -> None:
    """Whoever read standard output has gone: what follows goes nowhere, and is no error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Console(Console):
    def on_broken_pipe(self) -> None:
        forget_reader()  # a run goes on; rich would end it with 1


_console = _Console(highlight=False, soft_wrap=True)


def say(message: str) -> None:
    if jax.process_index() == 0:
        _console.print(message, markup=False)


def warn(message: str) -> None:
    """Beside what a command answers, which a program may read."""
    if jax.process_index() == 0:
        print(f"warning: {message}", file=sys.stderr)


class Progress:
    """A bar with loss, tokens/s and time left on a terminal; elsewhere a line now and then."""

    def __init__(self, total: int, start: int):
        self.total = total
        self.last_line = 0.0
        self.bar: Bar | None = None
        if _console.is_terminal and jax.process_index() == 0:
            columns = (BarColumn(), TextColumn("{task.completed}/{task.total}"))
            text = TextColumn("{task.fields[text]}")
            self.bar = Bar(*columns, text, TimeRemainingColumn(), console=_console)
            self.task = self.bar.add_task("", total=total, completed=start, text="compiling")
            self.bar.start()

    def update(self, step: int, loss: float, tokens_per_second: float, seconds_left: float) -> None:
        text = f"loss {loss:.4f}  {tokens_per_second:,.0f} tokens/s"
        if self.bar:
            self.bar.update(self.task, completed=step, text=text)
        elif step == self.total or time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            minutes, seconds = divmod(round(seconds_left), 60)
            say(f"step {step}/{self.total}  {text}  {minutes}:{seconds:02d} left")

    def close(self) -> None:
        if self.bar:
            self.bar.stop()
