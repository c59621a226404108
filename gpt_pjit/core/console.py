"""What a person sees: messages and progress, from one process of a run."""

import errno
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress as Bar,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

SECONDS_BETWEEN_LINES = 15.0  # where no terminal can show a bar
SECONDS_BETWEEN_FRAMES = 1.0  # of a run's screen; one takes milliseconds
NAME, VALUE, CELL = 15, 22, 38  # columns of a cell: its name, its value, and all of it

Cells = Callable[[], Mapping[str, str]]

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

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            for number in (1, 2):  # the terminal was closed; the run must still save
                if stat.S_ISCHR(os.fstat(number).st_mode):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), number)

    def show_cursor(self, show: bool = True) -> bool:
        return False  # it stays: who is killed cannot bring it back

    @property
    def draws(self) -> bool:
        """Whether it can show pictures, and is asked to."""
        plain = self.no_color or self.options.ascii_only
        return self.is_interactive and self.file.isatty() and not plain


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


class _Screen(Bar):
    """A bar, and cells beneath it, in as many columns as there is room for."""

    def __init__(self, cells: Cells | None, console: _Console):
        columns = (
            TextColumn("{task.description}"),
            BarColumn(None if cells else 40),
            TextColumn("{task.fields[t]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        self.cells, self._console = cells, console
        super().__init__(
            *columns,
            console=console,
            expand=cells is not None,
            auto_refresh=cells is None,  # a thread would disturb the steps of a run
            speed_estimate_period=3600,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.cells:
            text, a_row = Text(), max(self._console.width // CELL, 1)
            for number, (name, value) in enumerate(self.cells().items(), 1):
                text.append(f"{name:<{NAME}}", "dim").append(f"{value:<{CELL - NAME}.{VALUE}}")
                text.append("" if number % a_row else "\n")
            yield text
            yield ""  # where the prompt goes if the run is killed


class Progress:
    """How far a task is: a bar on a terminal, elsewhere a line every few seconds.

    `with Progress("scoring", total) as progress: progress.update(done, "more words")`; `total` is 0
    if it is unknown, and `counted` formats both numbers. The progress of a run has `cells`, names
    and what they are, which its terminal shows beneath the bar. It goes to stdout, any other to
    stderr.
    """

    def __init__(
        self,
        task: str,
        total: int,
        *,
        done: int = 0,
        counted: Callable[[int], str] = "{:,}".format,
        cells: Cells | None = None,
    ):
        self._task, self._total, self._counted = task, total, counted
        self._first, self._start = done, time.monotonic()
        self._last, self._done = self._start, done
        self._console = _console if cells else _Console(stderr=True, highlight=False)
        self._bar: _Screen | None = None
        if self._console.draws and not _muted:
            self._bar = _Screen(cells, self._console)
            self._row = self._bar.add_task(task, total=total or None, completed=done, t="")
            self._bar.start()

    def update(self, done: int, text: str = "") -> None:
        """Shows `done` of the total, work before this start included, and `text` after it."""
        text = f"{self._of_total(done)}  {text}".rstrip()
        if self._bar:
            if not self._bar.cells:
                self._bar.update(self._row, completed=done, t=text)
            return
        now = time.monotonic()
        is_last = bool(self._total) and done >= self._total
        if _muted or not (is_last or now - self._last > SECONDS_BETWEEN_LINES):
            return
        self._last = now
        if self._total and done > self._first:
            seconds = (self._total - done) * (now - self._start) / (done - self._first)
            text += f"  {round(seconds) // 60}:{round(seconds) % 60:02d} left"
        self._console.print(f"{self._task} {text}", markup=False, soft_wrap=True)

    def frame(self, done: int, task: str = "", at_once: bool = False) -> None:
        """Draws the screen of a run, which now does `task`; once a second, if not `at_once`."""
        self._done, now = done, time.monotonic()
        if self._bar and (at_once or now - self._last > SECONDS_BETWEEN_FRAMES):
            self._last = now
            text, task = self._of_total(done), task or self._task
            self._bar.update(self._row, completed=done, description=task, t=text, refresh=True)

    def close(self) -> None:
        if self._bar:
            if self._bar.cells:
                self.frame(self._done, at_once=True)
            self._bar.stop()

    def _of_total(self, done: int) -> str:
        return self._counted(done) + (f"/{self._counted(self._total)}" if self._total else "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
