"""Records in files: written so that a line is one fact, read back, and compared."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from gpt_pjit.core.errors import ConfigError

Record = dict[str, Any]
WIDTH = 110  # columns that one line of a file may take


class Change(NamedTuple):
    """A value that differs between two records; None on the side that lacks it."""

    path: tuple[str, ...]
    before: Any
    after: Any


def compare(
    before: Any, after: Any, tolerance: float = 0.0, path: tuple[str, ...] = ()
) -> list[Change]:
    """Every value that differs, in the order of the records.

    Numbers differ by more than `tolerance`, as a fraction of the one before. Lists are one value.
    """
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            change
            for key in dict.fromkeys([*before, *after])
            for change in compare(before.get(key), after.get(key), tolerance, (*path, key))
        ]
    if is_number(before) and is_number(after):
        same = abs(after - before) <= tolerance * abs(before)
    else:
        same = before == after
    return [] if same else [Change(path, before, after)]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def write_record(path: Path, record: Record) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(_layout(record, 0) + "\n", encoding="utf-8")


def read_record(path: Path, parts: tuple[str, ...]) -> Record:
    """The record in the file; raises ConfigError for what has no such `parts`."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if missing := [part for part in parts if part not in record]:
            raise ValueError(f"no {missing[0]!r} in it")
    except (ValueError, TypeError) as error:
        problem = f"not a record: {error}; write it again with --write"
        raise ConfigError([problem], str(path)) from None
    return record


def _layout(value: Any, indent: int) -> str:
    """JSON in which whatever fits stands on one line."""
    line = json.dumps(value)
    if not isinstance(value, dict | list) or not value or indent + len(line) <= WIDTH:
        return line
    margin = "\n" + " " * (indent + 1)
    if isinstance(value, list):
        items = [_layout(item, indent + 1) for item in value]
    else:
        items = [f"{json.dumps(key)}: {_layout(item, indent + 1)}" for key, item in value.items()]
    text = margin + f",{margin}".join(items) + "\n" + " " * indent
    return f"[{text}]" if isinstance(value, list) else f"{{{text}}}"
