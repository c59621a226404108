"""Progress of long work on text, on standard error: a bar on a terminal, else a few lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

SECONDS_BETWEEN_LINES = 30

Advance = Callable[[int, int], None]


@contextmanager
def progress(task: str, total_bytes: int) -> Iterator[Advance]:
    """Yields `advance(text_bytes, tokens)`, which shows MB, MB/s, tokens and the time left."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(task, total_bytes)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[tokens]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        row = bar.add_task(task, total=total_bytes, tokens="")
        total_tokens = 0

        def advance(text_bytes: int, tokens: int) -> None:
            nonlocal total_tokens
            total_tokens += tokens
            shown = f"{total_tokens:,} tokens" if total_tokens else ""
            bar.update(row, advance=text_bytes, tokens=shown)

        yield advance


def _lines(task: str, total_bytes: int) -> Advance:
    start = shown = time.monotonic()
    done = total_tokens = 0

    def advance(text_bytes: int, tokens: int) -> None:
        nonlocal shown, done, total_tokens
        done, total_tokens, now = done + text_bytes, total_tokens + tokens, time.monotonic()
        if done < total_bytes and now - shown < SECONDS_BETWEEN_LINES:
            return
        shown = now
        speed = done / max(now - start, 1e-9)
        words = [
            f"{task}: {done / 1e6:,.1f} of {total_bytes / 1e6:,.1f} MB",
            f"{speed / 1e6:,.1f} MB/s",
            f"{total_tokens:,} tokens" if total_tokens else "",
            f"{(total_bytes - done) / max(speed, 1):,.0f} s left" if done < total_bytes else "done",
        ]
        print(", ".join(filter(None, words)), file=sys.stderr, flush=True)

    return advance
