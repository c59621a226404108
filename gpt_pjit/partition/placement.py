"""From one table and one layout to the specs of the four trees, or to every reason why not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jax.sharding import PartitionSpec as P

from gpt_pjit.errors import ConfigError, Problem
from gpt_pjit.partition.layouts import LAYOUTS, MODEL, axes_of, keep
from gpt_pjit.partition.mesh import BATCH_AXES
from gpt_pjit.partition.rules import Match, Rules, match_rules, path_string


@dataclass(frozen=True)
class Placement:
    """Trees of PartitionSpecs, each shaped like the parameters, and the rule behind each leaf."""

    stored: Any
    compute: Any
    gradients: Any
    optimizer: Any
    matches: Any


def place(
    rules: Rules,
    params: Any,
    layout: str,
    axis_sizes: Mapping[str, int],
    scanned: str = "blocks/",
) -> Placement:
    """Places a tree of arrays or ShapeDtypeStructs; raises ConfigError with all problems at once.

    Parameters whose path starts with `scanned` can be gathered layer by layer; the weights of the
    others are whole over the batch axes in every layout.
    """
    matches = match_rules(rules, params)
    problems: list[Problem] = []

    def check(key_path: tuple[Any, ...], leaf: Any, match: Match) -> None:
        problems.extend(_problems(path_string(key_path), leaf.shape, match, axis_sizes))

    jax.tree_util.tree_map_with_path(check, params, matches)
    if problems:
        raise ConfigError(problems, "partition.rules")

    def specs(axes: frozenset[str], outside_scan: frozenset[str] | None = None) -> Any:
        def spec(key_path: tuple[Any, ...], _: Any, match: Match) -> P:
            in_scan = path_string(key_path).startswith(scanned)
            return keep(P(*match.value), axes if in_scan or outside_scan is None else outside_scan)

        return jax.tree_util.tree_map_with_path(spec, params, matches)

    chosen = LAYOUTS[layout]
    return Placement(
        stored=specs(chosen.stored),
        compute=specs(chosen.compute, outside_scan=MODEL),
        gradients=specs(chosen.gradients),
        optimizer=specs(chosen.optimizer),
        matches=matches,
    )


def _problems(path: str, shape: tuple[int, ...], match: Match, sizes: Mapping[str, int]):
    """What is wrong with one leaf's spec."""
    where = f"{path} (rule {match.number} {match.regex!r})"
    spec = match.value
    if not isinstance(spec, tuple | P):
        yield Problem(where, spec, "is no spec", "write a tuple with one entry for each dimension")
        return
    if len(spec) != len(shape):
        constraint = f"has {len(spec)} entries for {len(shape)} dimensions, shape {shape}"
        yield Problem(where, spec, constraint, f"write {len(shape)} entries, None for unsplit")
        return
    named = axes_of(P(*spec))
    for axis in dict.fromkeys(named):
        if axis not in sizes:
            yield Problem(where, spec, f"unknown mesh axis {axis!r}", f"known: {', '.join(sizes)}")
        elif named.count(axis) > 1:
            yield Problem(where, spec, f"names {axis!r} twice", "split one dimension over it")
    for dim, (size, entry) in enumerate(zip(shape, spec, strict=True)):
        parts = math.prod(sizes.get(axis, 1) for axis in axes_of(P(entry)))
        if size % parts:
            above = (size // parts + 1) * parts
            remedy = f"try {above - parts} or {above}" if above > parts else f"try {above}"
            fits = [n for n in range(1, size + 1) if size % n == 0][-6:]
            constraint = f"dimension {dim} of shape {shape} is {size}, not divisible by {parts}"
            remedy += f", or mesh sizes that divide it: {', '.join(map(str, fits))}"
            yield Problem(where, spec, constraint, remedy)


def over_batch_axes(spec: P, *, kind: str) -> P:
    """`spec` marked `reduced` or `unreduced` over the batch axes that it does not split.

    A weight that is `reduced` over an axis has a gradient that is `unreduced` over it: each device
    holds its own summand, and the sum happens where a later `reshard` says so, once.
    """
    rest = {axis for axis in BATCH_AXES if axis not in axes_of(spec)}
    return P(*spec, **{kind: rest})


def without_batch_axes(spec: P) -> P:
    """`spec` as it is once gathered over the batch axes."""
    return keep(spec, frozenset(axes_of(spec)) - frozenset(BATCH_AXES))


def optimizer_specs(tx: optax.GradientTransformation, params: Any, specs: Any) -> Any:
    """Specs of `tx`'s state: leaves of a parameter have its spec, the rest is replicated."""
    state = jax.eval_shape(tx.init, params)
    return optax.tree.map_params(
        tx, lambda _, spec: spec, state, specs, transform_non_params=lambda _: P()
    )


def shard_bytes(leaf: Any, spec: P, axis_sizes: Mapping[str, int]) -> int:
    """Bytes of one device's part of `leaf`."""
    parts = math.prod(axis_sizes[axis] for axis in axes_of(spec))
    return math.prod(leaf.shape) * leaf.dtype.itemsize // parts
