"""What is kept of a plan under version control, and how the next compile differs from it."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from gpt_pjit.core.errors import ConfigError, Problem

HEADER = """\
# What the training step takes of a device, as its compiler sees it. Memory and estimated cycles may
# differ by 2 %, collectives not at all. Checked by `python -m gpt_pjit.plan --check`.
"""
TOLERANCE = 0.02
NUMBERS = ("state_bytes", "peak_bytes", "mcycles")


def kept(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a `plan_record` that a file holds."""
    rows = Counter(
        (c["kind"], c["dtype"], "*".join(c["axes"]), c["where"], c["times"], c["bytes"])
        for c in record["collectives"]
    )
    names = ("kind", "dtype", "axes", "where", "times", "bytes")
    return {
        "state_bytes": record["memory"]["state_bytes"],
        "peak_bytes": record["memory"]["peak_bytes"],
        "mcycles": round((record["cost"] or {}).get("mcycles") or 0.0, 3),
        "promises": dict(record["promises"]),
        "collectives": [
            dict(zip(names, row, strict=True)) | {"count": count}
            for row, count in sorted(rows.items())
        ],
    }


def write_record(values: Mapping[str, Any]) -> str:
    lines = [HEADER, *(f"{name} = {values[name]}" for name in NUMBERS), "", "[promises]"]
    lines += [f"{name} = {json.dumps(kept)}" for name, kept in values["promises"].items()]
    for row in values["collectives"]:
        lines += ["", "[[collectives]]"]
        lines += [f"{name} = {json.dumps(value)}" for name, value in row.items()]
    return "\n".join(lines) + "\n"


def read_record(text: str, source: str) -> dict[str, Any]:
    try:
        values = tomllib.loads(text)
        return {name: values[name] for name in (*NUMBERS, "promises", "collectives")}
    except (tomllib.TOMLDecodeError, KeyError) as error:
        problem = Problem(source, str(error), "is no record of a plan", "write it with --write")
        raise ConfigError([problem], "record") from error


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """A line for each difference that counts."""
    lines = []
    for name in NUMBERS:
        old, new = before[name], after[name]
        ratio = new / old - 1 if old else float(new != old)
        if abs(ratio) > TOLERANCE:
            lines.append(f"{name}: {old:,} -> {new:,} ({ratio:+.1%})")
    for name in dict.fromkeys([*before["promises"], *after["promises"]]):
        was, now = before["promises"].get(name), after["promises"].get(name)
        if was != now:
            lines.append(f"promise {name}: {was} -> {now}")
    old_rows, new_rows = ({_text(row) for row in side["collectives"]} for side in (before, after))
    lines += [f"- {row}" for row in sorted(old_rows - new_rows)]
    lines += [f"+ {row}" for row in sorted(new_rows - old_rows)]
    return lines


def _text(row: Mapping[str, Any]) -> str:
    times = row["times"] * row["count"]
    where = f"over {row['axes']}, {row['where']}"
    return (
        f"{row['kind']} {row['dtype']} {where}: {times} times a step, {row['bytes']:,} bytes each"
    )
