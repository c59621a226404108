"""A placement as text for people and version control, and back. The text is TOML."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from typing import Any

from jax.sharding import PartitionSpec as P

from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.core.sharding import shard_shape
from gpt_pjit.partition.explain import TREES, Explanation, Part, Row
from gpt_pjit.partition.records import spec_entries
from gpt_pjit.partition.traffic import COLLECTIVES

HEADER = """\
# Where every parameter lives, and how many bytes of it a device holds, in each of the four trees.
# A spec has one entry for each dimension, the mesh axes that split it; "-" is not split. `moves` is
# what a training step moves through each device. Checked by `python -m gpt_pjit.partition lock`.
"""
UNSPLIT = "-"


def lock_name(config: str, explanation: Explanation) -> str:
    """`580m.data32.zero.lock`: the config, the mesh axes above 1, the layout."""
    axes = [f"{axis}{size}" for axis, size in explanation.axis_sizes.items() if size > 1]
    return f"{config}.{'-'.join(axes) or 'one'}.{explanation.layout}.lock"


def write_lock(explanation: Explanation) -> str:
    mesh = ", ".join(f"{axis} = {size}" for axis, size in explanation.axis_sizes.items())
    lines = [
        HEADER,
        f"layout = {json.dumps(explanation.layout)}",
        f"mesh = {{ {mesh} }}",
        f"counters = {explanation.counters}  # bytes of state that belongs to no parameter",
    ]
    for row in explanation.rows:
        moves = ", ".join(f"{json.dumps(name)} = {n}" for name, n in row.traffic.items() if n)
        lines += ["", f"[{json.dumps(row.path)}]", f"shape = {json.dumps(row.shape)}"]
        for tree, part in row.parts.items():
            spec = json.dumps(spec_entries(part.spec, UNSPLIT))
            lines.append(f"{tree:9} = {{ spec = {spec}, bytes = {part.nbytes} }}")
        lines.append(f"moves     = {{ {moves} }}")
    return "\n".join(lines) + "\n"


def read_lock(text: str, source: str) -> Explanation:
    """The explanation that `write_lock` wrote, without rules and letters."""
    try:
        values = tomllib.loads(text)
        mesh, layout, counters = (values.pop(name) for name in ("mesh", "layout", "counters"))
        rows = tuple(_row(path, row, mesh) for path, row in values.items())
    except (tomllib.TOMLDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        problem = Problem(source, str(error), "is no lock", "write it anew with --write")
        raise ConfigError([problem], "lock") from error
    return Explanation(layout, mesh, rows, counters)


def _row(path: str, values: Mapping[str, Any], mesh: Mapping[str, int]) -> Row:
    shape = tuple(values["shape"])
    parts = {}
    for tree in TREES:
        read = (
            tuple(entry) if isinstance(entry, list) else None if entry == UNSPLIT else entry
            for entry in values[tree]["spec"]
        )
        spec = P(*read)
        parts[tree] = Part(spec, shard_shape(shape, spec, mesh), values[tree]["bytes"])
    return Row(path, shape, parts, {name: values["moves"].get(name, 0) for name in COLLECTIVES})
