"""Folders that are there whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt_pjit.errors import ConfigError


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` at the end of the block; if it fails, nothing stays.

    Raises ConfigError if `out` is there already, and is not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError([f"{out} is there already; choose another --out, or delete it"], "--out")
    draft = out.with_name(f"{out.name}.partial-{os.getpid()}")
    draft.mkdir(parents=True)
    try:
        yield draft
        draft.rename(out)  # an empty folder is replaced
    except BaseException:
        shutil.rmtree(draft)
        raise
