"""Folders and files that are there whole, or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt_pjit.core.errors import ConfigError


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` at the end of the block; if it fails, nothing stays.

    Raises ConfigError where `check_new` does, or nothing can be written beside `out`.
    """
    check_new(out)
    out = out.resolve()  # where a link points is replaced, not the link
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(prefix=f"{out.name}.partial-", dir=out.parent)
    except OSError as error:
        problem = f"{out} cannot be made: {error.strerror}, {error.filename}; choose another --out"
        raise ConfigError([problem], "--out") from None
    with beside as folder:
        draft = Path(folder) / out.name  # `folder` itself is for the eyes of its owner only
        draft.mkdir()
        yield draft
        draft.rename(out)  # an empty folder is replaced


def write_whole(path: Path, text: str) -> None:
    """Replaces a file in one step."""
    draft = path.with_name(f"{path.name}.tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def check_new(out: Path) -> None:
    """Raises ConfigError unless nothing is at `out`, or an empty folder that can be replaced."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError([f"{out} is there already; choose another --out, or delete it"], "--out")
    if out.is_mount() or out.resolve() == Path.cwd():
        problem = f"{out} is a mount point or the current folder; choose a new folder inside it"
        raise ConfigError([problem], "--out")
