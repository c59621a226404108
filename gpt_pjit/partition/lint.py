"""All that is wrong or doubtful in a sharding table: errors stop training, warnings do not."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from jax.sharding import PartitionSpec as P

from gpt_pjit.core.sharding import (
    REPLICA,
    Finding,
    Match,
    Rules,
    axes_of,
    choose,
    paths_and_leaves,
    shard_shape,
    try_rules,
)

CATCH_ALL_BYTES = 2**20  # that a catch-all may place, before splitting
REPLICATED_BYTES = 2**20  # that a tensor may have which is whole on every device


def lint(rules: Rules, params: Any, axis_sizes: Mapping[str, int]) -> list[Finding]:
    """The errors, which are those of `place`, then the warnings."""
    leaves = dict(paths_and_leaves(params))
    chosen, errors = choose(rules, params, axis_sizes)
    matches = try_rules(rules, list(leaves))[0]
    return [
        *errors,
        *_catch_alls(matches, leaves),
        *_unused_axes(matches | chosen, set(chosen), axis_sizes),
        *_replicated(chosen, leaves, axis_sizes),
    ]


def is_catch_all(regex: str, path: str) -> bool:
    """Whether a rule that matches `path` would match any other name in its place.

    It then takes in silence whatever parameter is added there next: `.*` or `blocks/.*`, but not
    `.*/kernel`.
    """
    parent, slash, _ = path.rpartition("/")
    return bool(re.fullmatch(regex, f"{parent}{slash}any_other_name"))


def _catch_alls(matches: Mapping[str, Match], leaves: Mapping[str, Any]) -> Iterator[Finding]:
    rules = {match.number: match for match in matches.values()}
    for number, rule in sorted(rules.items()):
        taken = [path for path, match in matches.items() if match.number == number]
        size = sum(_bytes(leaves[path]) for path in taken)
        if size > CATCH_ALL_BYTES and is_catch_all(rule.regex, taken[0]):
            constraint = (
                f"is a catch-all of {len(taken)} parameters, {size:,} bytes: any other name "
                f"instead of {taken[0]} would match too"
            )
            remedy = f"name what it is for: {'|'.join(map(re.escape, taken))}"
            yield Finding(
                f"rule {number}",
                rule.regex,
                constraint,
                remedy,
                "catch-all",
                taken[0],
                number,
                severity="warning",
            )


def _unused_axes(
    matches: Mapping[str, Match], chosen: set[str], axis_sizes: Mapping[str, int]
) -> Iterator[Finding]:
    """Axes that split no parameter; `replica` is there to split nothing but the batch."""
    used: set[str] = set()
    for path, match in matches.items():
        specs = [match.value] if path in chosen else match.values
        used.update(*(axes_of(P(*spec)) for spec in specs if isinstance(spec, tuple | P)))
    for axis, size in axis_sizes.items():
        if size > 1 and axis not in used and axis != REPLICA:
            constraint = "no rule splits anything over it: its devices hold the same parameters"
            remedy = f"name {axis!r} in a spec, or set mesh.{axis}=1"
            yield Finding(
                f"mesh.{axis}", size, constraint, remedy, "unused axis", severity="warning"
            )


def _replicated(
    chosen: Mapping[str, Match], leaves: Mapping[str, Any], axis_sizes: Mapping[str, int]
) -> Iterator[Finding]:
    splitting = {axis: size for axis, size in axis_sizes.items() if size > 1 and axis != REPLICA}
    for path, match in chosen.items():
        shape = leaves[path].shape
        whole = shard_shape(shape, P(*match.value), axis_sizes) == shape
        if not splitting or not whole or _bytes(leaves[path]) <= REPLICATED_BYTES:
            continue
        constraint = f"whole on every device, {_bytes(leaves[path]):,} bytes, shape {shape}"
        fits = [
            tuple(axis if dim == here else None for here in range(len(shape)))
            for axis, size in splitting.items()
            for dim in range(len(shape))
            if shape[dim] % size == 0
        ]
        remedy = f"split it, for example {fits[-1]}" if fits else "no mesh axis divides it"
        yield Finding(
            f"{path} ({match})",
            match.value,
            constraint,
            remedy,
            "replicated",
            path,
            match.number,
            severity="warning",
        )


def _bytes(leaf: Any) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize
