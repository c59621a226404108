"""Where every parameter lives in each of the four trees, in bytes, and by which rule."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from gpt_pjit.core.sharding import (
    Match,
    Placement,
    Rules,
    paths_and_leaves,
    shard_bytes,
    shard_shape,
)
from gpt_pjit.partition.traffic import traffic

TREES = ("stored", "compute", "gradients", "optimizer")


@dataclass(frozen=True)
class Part:
    """One device's part of a parameter in one tree.

    In the optimizer tree the bytes are those of all state leaves of the parameter.
    """

    spec: P
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class Row:
    """One parameter: its part in each tree, and the bytes that a step moves, by collective."""

    path: str
    shape: tuple[int, ...]
    parts: Mapping[str, Part]
    traffic: Mapping[str, int]
    letters: str = ""
    match: Match | None = None

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())

    def is_whole(self, tree: str) -> bool:
        """Whether every device holds all of it."""
        return self.parts[tree].shape == self.shape


@dataclass(frozen=True)
class RuleUse:
    """A rule with the number of its tensors, their bytes a device, and those it replicates."""

    number: int
    regex: str
    specs: tuple[Any, ...]
    tensors: int
    nbytes: int
    replicated: int


@dataclass(frozen=True)
class Explanation:
    """A row for each parameter; `counters` are bytes of state that belongs to no parameter."""

    layout: str
    axis_sizes: Mapping[str, int]
    rows: tuple[Row, ...]
    counters: int

    @property
    def devices(self) -> int:
        return math.prod(self.axis_sizes.values())

    def tree_bytes(self, tree: str) -> int:
        """Bytes a device; the counters are counted as optimizer state."""
        total = sum(row.parts[tree].nbytes for row in self.rows)
        return total + (self.counters if tree == "optimizer" else 0)

    def by_rule(self, rules: Rules) -> Iterator[RuleUse]:
        """What each rule places; replicated is what the rule, and not the layout, leaves whole."""
        for number, (regex, *specs) in enumerate(rules):
            rows = [row for row in self.rows if row.match and row.match.number == number]
            whole = (
                row.nbytes
                for row in rows
                if row.match
                and shard_shape(row.shape, P(*row.match.value), self.axis_sizes) == row.shape
            )
            nbytes = sum(row.nbytes for row in rows)
            yield RuleUse(number, regex, tuple(specs), len(rows), nbytes, sum(whole))

    def moved_bytes(self, collective: str) -> int:
        """Bytes that a step moves through each device."""
        return sum(row.traffic[collective] for row in self.rows)


def explain(
    placement: Placement,
    params: Any,
    weights: Any,
    state_bytes: Mapping[str | None, int],
    letters: Mapping[str, str],
    *,
    microbatches: int,
    passes: int,
) -> Explanation:
    """Reads shapes and dtypes of the stored `params` and of the `weights` in the passes.

    `state_bytes` are the bytes a device of each parameter's optimizer state, `letters` names the
    dimensions of each parameter; `microbatches` and `passes` are as in `traffic`.
    """
    sizes = placement.axis_sizes
    weight_of, match_of = dict(paths_and_leaves(weights)), dict(paths_and_leaves(placement.matches))
    specs_of = {tree: dict(paths_and_leaves(getattr(placement, tree))) for tree in TREES}
    rows = []
    for path, param in paths_and_leaves(params):
        gradient = jax.ShapeDtypeStruct(param.shape, jnp.float32)
        arrays = {"stored": param, "compute": weight_of[path], "gradients": gradient}
        specs = {tree: specs_of[tree][path] for tree in TREES}
        nbytes = {tree: shard_bytes(leaf, specs[tree], sizes) for tree, leaf in arrays.items()}
        nbytes["optimizer"] = state_bytes.get(path, 0)
        parts = {
            tree: Part(spec, shard_shape(param.shape, spec, sizes), nbytes[tree])
            for tree, spec in specs.items()
        }
        moved = traffic(param, weight_of[path], specs, sizes, microbatches, passes)
        rows.append(Row(path, param.shape, parts, moved, letters.get(path, ""), match_of[path]))
    return Explanation(placement.layout, sizes, tuple(rows), state_bytes.get(None, 0))
