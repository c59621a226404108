"""From a table and a layout to the specs of the four trees, or to a list of all problems."""

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec as P

from gpt_pjit.core.errors import ConfigError, Problem, nearest_multiples
from gpt_pjit.core.sharding.layouts import (
    BATCH,
    LAYOUTS,
    ROLES,
    axes_of,
    axis_sizes_of,
    keep,
    without_role,
)
from gpt_pjit.core.sharding.mesh import BATCH_AXES
from gpt_pjit.core.sharding.rules import (
    NO_RULE,
    SHARDING,
    Finding,
    Match,
    Rules,
    path_string,
    paths_and_leaves,
    try_rules,
)

SCANNED = "blocks/"  # parameters with a leading dimension of layers, run by a scan
TILE = 128  # lanes of a TPU tile; a vocabulary is padded to a multiple of it


@dataclass(frozen=True)
class Placement:
    """Trees of PartitionSpecs, each shaped like the parameters, and the rule behind each leaf.

    A leaf that is not an array has None in each tree, as in `equinox.filter`.
    """

    layout: str
    axis_sizes: Mapping[str, int]
    roles: Mapping[str, str]
    stored: Any
    compute: Any
    gradients: Any
    optimizer: Any
    matches: Any


def place(
    rules: Rules,
    params: Any,
    layout: str,
    mesh: Any,
    scanned: str = SCANNED,
    roles: Mapping[str, str] = ROLES,
) -> Placement:
    """The specs of a tree's four trees by a table and a layout.

    Args:
      rules: `(regex, spec)` rows, or `(regex, spec, otherwise, ...)` in order of preference.
      params: a pytree of arrays or ShapeDtypeStructs. What is no array is left alone; a leaf of one
        element that no row matches is replicated. `lint` names both.
      layout: `ddp`, `zero1`, `zero` or `fsdp`.
      mesh: a Mesh or AbstractMesh of any axis types, or the size of each axis.
      scanned: the weights of parameters whose path starts with it can be gathered layer by layer;
        those of the others are whole over the batch axes in every layout.
      roles: `"batch"` or `"model"` for each axis of the mesh; common names have theirs.

    Raises:
      ConfigError: with all problems at once; each names the parameter, the row and a remedy.

    >>> import jax, jax.numpy as jnp
    >>> params = {"up": {"kernel": jax.ShapeDtypeStruct((512, 2048), jnp.float32)}}
    >>> placement = place((("up/kernel", ("fsdp", "tp")),), params, "zero", {"fsdp": 4, "tp": 2})
    >>> placement.stored, placement.compute
    ({'up': {'kernel': P('fsdp', 'tp')}}, {'up': {'kernel': P(None, 'tp')}})
    """
    if layout not in LAYOUTS:
        problem = Problem("layout", layout, "is unknown", f"known: {', '.join(LAYOUTS)}")
        raise ConfigError([problem], SHARDING)
    axis_sizes = axis_sizes_of(mesh)
    chosen, findings = choose(rules, params, axis_sizes, roles)
    if findings:
        raise ConfigError(findings, SHARDING)
    matches = jax.tree_util.tree_map_with_path(
        lambda path, _: chosen.get(path_string(path)), params
    )
    every = list(axis_sizes)
    model_axes = [axis for axis in every if roles[axis] != BATCH]

    def specs(batch_axes: bool, in_scan_only: bool = False) -> Any:
        def spec(key_path: tuple[Any, ...], match: Match) -> P:
            everywhere = not in_scan_only or path_string(key_path).startswith(scanned)
            return keep(P(*match.value), every if batch_axes and everywhere else model_axes)

        return jax.tree_util.tree_map_with_path(spec, matches)

    keeps = LAYOUTS[layout]
    return Placement(
        layout=layout,
        axis_sizes=axis_sizes,
        roles={axis: roles[axis] for axis in axis_sizes},
        stored=specs(keeps.stored),
        compute=specs(keeps.compute, in_scan_only=True),
        gradients=specs(keeps.gradients),
        optimizer=specs(keeps.optimizer),
        matches=matches,
    )


def shardings(mesh: Any, specs: Any) -> Any:
    """A tree of NamedShardings like `specs`, on a Mesh or AbstractMesh of any axis types.

    It is what `jax.jit(..., out_shardings=)` and `jax.device_put` take. None remains None.

    >>> import jax
    >>> mesh = jax.sharding.AbstractMesh((4, 2), ("fsdp", "tp"))
    >>> shardings(mesh, {"up": P("fsdp", "tp")})["up"].shard_shape((512, 2048))
    (128, 1024)
    """
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def choose(
    rules: Rules,
    params: Any,
    axis_sizes: Mapping[str, int],
    roles: Mapping[str, str] = ROLES,
) -> tuple[dict[str, Match], list[Finding]]:
    """For each path the match with the first of its specs that divides, and all problems."""
    leaves = [(path, leaf) for path, leaf in paths_and_leaves(params) if is_array(leaf)]
    matches, findings = try_rules(rules, [path for path, _ in leaves])
    chosen = {}
    for path, leaf in leaves:
        if path not in matches:
            if math.prod(leaf.shape) == 1:
                chosen[path] = Match(NO_RULE, "", ((None,) * len(leaf.shape),))
            continue
        match = replace(
            matches[path], values=tuple(filled(spec, leaf.shape) for spec in matches[path].values)
        )
        wrong = [
            finding
            for spec in match.values
            for finding in malformed(path, match, spec, leaf.shape, axis_sizes)
        ]
        if not wrong:
            tried = misfits(path, match, leaf.shape, axis_sizes)
            fits = [number for number, why_not in enumerate(tried) if not why_not]
            if fits:
                chosen[path] = replace(match, chosen=fits[0])
            else:
                wrong = tried[0] if len(tried) == 1 else [_none_fits(path, match, tried)]
        findings += wrong
    covered = [f for f in findings if f.kind != "unmatched" or f.parameter not in chosen]
    return chosen, [*without_role(axis_sizes, roles), *covered]


def is_array(leaf: Any) -> bool:
    """Whether a leaf has a shape and a dtype, and so a spec."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def filled(spec: Any, shape: tuple[int, ...]) -> Any:
    """`spec` with None for all dimensions that its closing `...` stands for.

    Such a spec may be longer than the shape if it names no axis, and leaves one element whole.
    """
    if not isinstance(spec, tuple) or spec[-1:] != (...,):
        return spec
    given = spec[:-1]
    if not any(given) or math.prod(shape) == 1:
        given = ()
    return given + (None,) * (len(shape) - len(given))


def misfits(
    path: str, match: Match, shape: tuple[int, ...], axis_sizes: Mapping[str, int]
) -> list[list[Finding]]:
    """For each spec of a match, the dimensions that it would split unevenly."""
    return [list(_indivisible(path, match, spec, shape, axis_sizes)) for spec in match.values]


def malformed(
    path: str,
    match: Match,
    spec: Any,
    shape: tuple[int, ...],
    axis_sizes: Mapping[str, int] | None = None,
) -> Iterator[Finding]:
    """The problems of a spec on any mesh; without `axis_sizes`, axes may have any name."""

    def finding(kind: str, constraint: str, remedy: str) -> Finding:
        return _of_parameter(path, match, spec, kind, constraint, remedy)

    if not isinstance(spec, tuple | P) or not all(map(_is_entry, spec)):
        remedy = "write a tuple with None, an axis, or a tuple of axes for each dimension"
        yield finding("not a spec", "is not a spec", remedy)
        return
    if len(spec) != len(shape):
        constraint = f"has rank {len(spec)}, and the tensor rank {len(shape)}, shape {shape}"
        yield finding("rank", constraint, "write an entry for each dimension, None for unsplit")
        return
    named = axes_of(P(*spec))
    for axis in dict.fromkeys(named):
        if axis_sizes is not None and axis not in axis_sizes:
            close = difflib.get_close_matches(axis, axis_sizes, n=1)
            remedy = f"did you mean {close[0]!r}? " if close else ""
            remedy += f"known: {', '.join(axis_sizes)}"
            yield finding("unknown axis", f"unknown mesh axis {axis!r}", remedy)
        elif named.count(axis) > 1:
            remedy = "split one dimension over it"
            yield finding("repeated axis", f"names {axis!r} twice", remedy)


def _is_entry(entry: Any) -> bool:
    axes = entry if isinstance(entry, tuple) else (entry,)
    return entry is None or all(isinstance(axis, str) for axis in axes)


def _indivisible(
    path: str, match: Match, spec: Any, shape: tuple[int, ...], axis_sizes: Mapping[str, int]
) -> Iterator[Finding]:
    """Dimensions that the mesh does not divide, with sizes and factors that work."""
    devices = math.prod(axis_sizes.values())
    for dim, (size, entry) in enumerate(zip(shape, spec, strict=True)):
        axes = axes_of(P(entry))
        parts = math.prod(axis_sizes[axis] for axis in axes)
        if size % parts == 0:
            continue
        remedy = f"try {nearest_multiples(size, parts)}"
        if size > TILE:
            multiple = math.lcm(TILE, parts)
            padded = (size // multiple + 1) * multiple
            remedy += f", or pad it to {padded}, the next multiple of {multiple}"
        factors = [n for n in range(1, devices + 1) if size % n == 0 and devices % n == 0]
        remedy += f"; mesh sizes that divide it and {devices}: {', '.join(map(str, factors))}"
        written = " * ".join(f"{axis} {axis_sizes[axis]}" for axis in axes)
        constraint = (
            f"dimension {dim} of shape {shape} is {size}, not divisible by {parts} ({written})"
        )
        yield _of_parameter(path, match, spec, "indivisible", constraint, remedy)


def _none_fits(path: str, match: Match, tried: list[list[Finding]]) -> Finding:
    reasons = "; ".join(f"{why_not[0].value}: {why_not[0].constraint}" for why_not in tried)
    constraint = f"none of its {len(tried)} specs fits: {reasons}"
    remedy = f"add one that does, or for the first {tried[0][0].remedy}"
    return _of_parameter(path, match, match.values, "indivisible", constraint, remedy)


def _of_parameter(
    path: str, match: Match, value: Any, kind: str, constraint: str, remedy: str
) -> Finding:
    where = f"{path} ({match})"
    return Finding(where, value, constraint, remedy, kind, parameter=path, rule=match.number)


def over_batch_axes(spec: P, *, kind: str) -> P:
    """`spec` marked `reduced` or `unreduced` over the batch axes that it does not split.

    A weight that is `reduced` over an axis has a gradient that is `unreduced` over it: each device
    holds its own summand, and the sum happens where a later `reshard` says so, once.
    """
    rest = {axis for axis in BATCH_AXES if axis not in axes_of(spec)}
    return P(*spec, **{kind: rest})


def without_batch_axes(spec: P) -> P:
    """`spec` after a gather over the batch axes."""
    return keep(spec, frozenset(axes_of(spec)) - frozenset(BATCH_AXES))


def shard_shape(shape: tuple[int, ...], spec: P, axis_sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of one device's part."""
    entries = (*spec, *(None,) * (len(shape) - len(spec)))
    parts = (math.prod(axis_sizes[axis] for axis in axes_of(P(entry))) for entry in entries)
    return tuple(size // n for size, n in zip(shape, parts, strict=True))


def shard_bytes(leaf: Any, spec: P, axis_sizes: Mapping[str, int]) -> int:
    """Bytes of one device's part of `leaf`."""
    return math.prod(shard_shape(leaf.shape, spec, axis_sizes)) * leaf.dtype.itemsize
