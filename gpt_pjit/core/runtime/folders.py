"""Folders and files that appear complete or not at all, and JSON files that may be damaged."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt_pjit.core.errors import ConfigError

DEEPEST = 100  # levels of a JSON file: far more than ours have, far fewer than Python can handle


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` at the end of the block; if the block fails, nothing remains.

    Raises ConfigError if `check_new` does, or if nothing can be written beside `out`.
    """
    check_new(out)
    out = out.resolve()  # the target of a link is replaced, not the link
    with file_errors(f"{out} cannot be made", "--out"):
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(prefix=f"{out.name}.partial-", dir=out.parent)
    with beside as folder, file_errors(f"{out} cannot be written", "--out"):
        draft = Path(folder) / out.name  # only its owner can read `folder` itself
        draft.mkdir()
        yield draft
        draft.rename(out)  # an empty folder is replaced


def check_new(out: Path) -> None:
    """Raises ConfigError if something is at `out`, except an empty folder, which is replaced."""
    with file_errors(f"{out} cannot be made", "--out"):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(
                [f"{out} already exists; choose another --out, or delete it"], "--out"
            )
        if out.is_mount() or out.resolve() == Path.cwd():
            problem = f"{out} is a mount point or the current folder; choose a new folder in it"
            raise ConfigError([problem], "--out")


def write_whole(path: Path, text: str) -> None:
    """Replaces a file in one step; raises ConfigError if it cannot be written."""
    draft = path.with_name(f"{path.name}.tmp")
    with file_errors(f"{path} cannot be written", str(path.parent)):
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ConfigError if it cannot be read or holds something else."""
    with file_errors(f"{path} cannot be read", str(path.parent)):
        content = path.read_bytes()
    try:
        value = json.loads(content)
        if _too_deep(value):
            raise RecursionError
    except RecursionError:
        reason = "nested too deeply"
    except ValueError as error:
        reason = f"not valid JSON: {error}"
    else:
        if isinstance(value, dict):
            return value
        reason = "not a JSON object"
    raise ConfigError([f"{path} is damaged: it is {reason}"], str(path.parent))


def _too_deep(value: Any) -> bool:
    level, depth = [value], 0
    while level and depth <= DEEPEST:
        inside = [
            v.values() if isinstance(v, dict) else v for v in level if type(v) in (dict, list)
        ]
        level, depth = [child for children in inside for child in children], depth + 1
    return bool(level)


@contextmanager
def file_errors(problem: str, source: str) -> Iterator[None]:
    """Turns an OSError of the block, such as a full disk, into a ConfigError."""
    try:
        yield
    except OSError as error:
        where = f", {error.filename}" if error.filename else ""
        raise ConfigError([f"{problem}: {error.strerror or error}{where}"], source) from None
