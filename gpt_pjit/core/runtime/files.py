"""Files that are replaced whole, and errors of the file system as one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt_pjit.core.errors import ConfigError


def write_whole(path: Path, text: str) -> None:
    """Replaces a file in one step; ConfigError where the file system refuses."""
    draft = path.with_name(f"{path.name}.tmp")
    with file_errors(f"{path} cannot be written", str(path.parent)):
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)


def write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ConfigError if it cannot be read or holds anything else."""
    with file_errors(f"{path} cannot be read", str(path.parent)):
        content = path.read_bytes()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        problem = f"{path} is damaged, it is not valid JSON: {error}"
        raise ConfigError([problem], str(path.parent)) from None
    if not isinstance(value, dict):
        raise ConfigError([f"{path} is damaged, it is not a JSON object"], str(path.parent))
    return value


@contextmanager
def file_errors(problem: str, source: str) -> Iterator[None]:
    """An OSError of the block, such as a full disk or a read-only folder, as a ConfigError."""
    try:
        yield
    except OSError as error:
        where = f", {error.filename}" if error.filename else ""
        raise ConfigError([f"{problem}: {error.strerror or error}{where}"], source) from None
