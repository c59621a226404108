"""Placements and their differences as plain values, for JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from jax.sharding import PartitionSpec as P

from gpt_pjit.core.sharding import Rules
from gpt_pjit.partition.diff import Difference
from gpt_pjit.partition.explain import TREES, Explanation, Part, Row
from gpt_pjit.partition.traffic import COLLECTIVES


def spec_entries(spec: P, unsplit: str | None = None) -> list[Any]:
    """An axis, a list of axes, or `unsplit` for each dimension."""
    return [
        list(entry) if isinstance(entry, tuple) else unsplit if entry is None else entry
        for entry in spec
    ]


def explanation_record(explanation: Explanation, rules: Rules) -> dict[str, Any]:
    return {
        **_totals(explanation),
        "rules": [dataclasses.asdict(use) for use in explanation.by_rule(rules)],
        "parameters": {row.path: _row_record(row) for row in explanation.rows},
    }


def difference_record(difference: Difference) -> dict[str, Any]:
    return {
        "before": _totals(difference.before),
        "after": _totals(difference.after),
        "moved": {
            path: {
                side: row and {tree: _part_record(row.parts[tree]) for tree in trees}
                for side, row in (("before", before), ("after", after))
            }
            for path, before, after, trees in difference.moves
        },
    }


def _totals(explanation: Explanation) -> dict[str, Any]:
    return {
        "layout": explanation.layout,
        "mesh": dict(explanation.axis_sizes),
        "bytes_a_device": {tree: explanation.tree_bytes(tree) for tree in TREES},
        "bytes_moved_a_step": {name: explanation.moved_bytes(name) for name in COLLECTIVES},
    }


def _row_record(row: Row) -> dict[str, Any]:
    match = row.match
    return {
        "shape": list(row.shape),
        "dimensions": row.letters,
        "rule": match and {"number": match.number, "regex": match.regex, "spec": match.chosen},
        "trees": {tree: _part_record(part) for tree, part in row.parts.items()},
        "bytes_moved_a_step": dict(row.traffic),
    }


def _part_record(part: Part) -> dict[str, Any]:
    return {"spec": spec_entries(part.spec), "shape": list(part.shape), "bytes": part.nbytes}
