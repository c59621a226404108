"""What lies in a folder of checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gpt_pjit.core.checkpointer import missing_parts


@dataclass(frozen=True)
class Listed:
    """A checkpoint: its step, when it was written, its size, and whether it has all its parts."""

    step: int
    date: str
    size: int
    complete: bool


def list_checkpoints(directory: Path) -> list[Listed]:
    """Every step under `directory`, those that a kill left unfinished included, in order."""
    found = []
    for folder in directory.iterdir() if directory.is_dir() else ():
        step, _, unfinished = folder.name.partition(".")  # Orbax writes in STEP.orbax-...-tmp-N
        if not step.isdigit() or not folder.is_dir():
            continue
        try:
            stats = [file.stat() for file in folder.rglob("*") if file.is_file()]
            newest = max((stat.st_mtime for stat in stats), default=folder.stat().st_mtime)
        except FileNotFoundError:  # a run under way has just pruned or renamed it
            continue
        found.append(
            Listed(
                step=int(step),
                date=datetime.fromtimestamp(newest, UTC).isoformat(timespec="seconds"),
                size=sum(stat.st_size for stat in stats),
                complete=not unfinished and not missing_parts(directory, int(step)),
            )
        )
    return sorted(found, key=lambda listed: listed.step)
