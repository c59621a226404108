"""What changes between two placements: which tensors move, and bytes held and moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from gpt_pjit.partition.explain import TREES, Explanation, Row


class Move(NamedTuple):
    """A parameter with another part in `trees`; None where a side has no such parameter."""

    path: str
    before: Row | None
    after: Row | None
    trees: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    before: Explanation
    after: Explanation
    moves: tuple[Move, ...]


def diff(before: Explanation, after: Explanation) -> Difference:
    """Every parameter that is placed otherwise in some tree, in the order of their paths."""
    old, new = ({row.path: row for row in side.rows} for side in (before, after))
    moves = []
    for path in sorted(old | new):
        was, now = old.get(path), new.get(path)
        trees = tuple(
            tree
            for tree in TREES
            if was is None or now is None or was.parts[tree] != now.parts[tree]
        )
        if trees:
            moves.append(Move(path, was, now, trees))
    return Difference(before, after, tuple(moves))
