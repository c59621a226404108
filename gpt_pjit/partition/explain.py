"""Where every parameter lives, by which rule, and what a training step moves for its sake.

The answer is a record of plain values: --json prints it, a lock keeps it, tables and pages show it.

Traffic follows from specs alone, by the formulas of a ring: of B bytes over n devices, an
all-gather and a reduce-scatter move (n - 1) / n * B through each device, an all-reduce twice that;
an all-to-all moves (n - 1) / n of what a device holds. The activations that tensor parallelism
moves are not counted, nor the scalars of the metrics.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jax.sharding import PartitionSpec as P

from gpt_pjit.core.sharding import (
    BATCH,
    NO_RULE,
    Match,
    Placement,
    Rules,
    axes_of,
    is_array,
    keep,
    optimizer_specs,
    paths_and_leaves,
    shard_bytes,
    shard_shape,
    state_parameters,
    state_shapes,
)

Record = dict[str, Any]
TREES = ("stored", "compute", "gradients", "optimizer")
COLLECTIVES = (
    "gather weights, once",
    "gather weights, layer by layer",
    "reduce gradients, layer by layer",
    "reduce gradients, once",
    "gather updated parameters",
)
DEAL = "deal matrices to Muon"  # in records of those that use it


def explain(placement: Placement, params: Any, tx: Any = None, rules: Rules = ()) -> Record:
    """Where each leaf of `params` lives, by which rule, and what a step moves for its sake.

    Args:
      placement: of these parameters, by `place`.
      params: a tree of arrays or ShapeDtypeStructs; passes use them in the dtype that they have.
      tx: an optax optimizer; without one there is no optimizer state.
      rules: the rows of its state, as `optimizer_specs` takes them.

    Returns:
      A record for JSON: layout, mesh, rules, parameters, and the bytes of one device, for a step of
      one microbatch whose backward pass gathers again. `without_spec` has the paths of leaves that
      are no arrays, `state_of_no_parameter` the specs of such state.

    Raises:
      ConfigError: as `optimizer_specs` does.

    >>> import jax, jax.numpy as jnp, optax
    >>> from gpt_pjit.partition import place
    >>> params = {"up": jax.ShapeDtypeStruct((512, 2048), jnp.float32)}
    >>> placement = place((("up", ("fsdp", "tp")),), params, "zero", {"fsdp": 4, "tp": 2})
    >>> explain(placement, params, optax.adam(1e-3))["bytes_a_device"]
    {'stored': 524288, 'compute': 2097152, 'gradients': 524288, 'optimizer': 1048580}
    """
    nbytes: Counter[str | None] = Counter()
    of_no_parameter: Record = {}
    if tx is not None:
        specs = dict(paths_and_leaves(optimizer_specs(tx, params, placement.optimizer, rules)))
        owners = state_parameters(tx, params)
        for path, leaf in paths_and_leaves(state_shapes(tx, params)):
            nbytes[owners[path]] += shard_bytes(leaf, specs[path], placement.axis_sizes)
            if owners[path] is None:
                of_no_parameter[path] = spec_entries(specs[path])
    leaves = paths_and_leaves(params)
    arrays = {path: leaf for path, leaf in leaves if is_array(leaf)}
    return described(placement, arrays, arrays, nbytes) | {
        "without_spec": [path for path, _ in leaves if path not in arrays],
        "state_of_no_parameter": of_no_parameter,
    }


def described(
    placement: Placement,
    params: Mapping[str, Any],
    weights: Mapping[str, Any],
    state_bytes: Mapping[str | None, int],
    letters: Mapping[str, str] | None = None,
    microbatches: int = 1,
    passes: int = 2,
    dealt: Mapping[str, int] | None = None,
) -> Record:
    """The record of parameters as stored, and of weights as the passes use them, both by path.

    `state_bytes` has under None what belongs to no parameter. `letters` name the dimensions. Each
    microbatch gathers a layer in each of `passes`. `dealt` is what moves for Muon.
    """
    axis_sizes, dealt = placement.axis_sizes, dealt or {}
    match_of = dict(paths_and_leaves(placement.matches))
    specs_of = {tree: dict(paths_and_leaves(getattr(placement, tree))) for tree in TREES}
    parameters: Record = {}
    for path, param in params.items():
        match, leaves = match_of[path], {"stored": param, "compute": weights[path]}
        specs = {tree: specs_of[tree][path] for tree in TREES}
        nbytes = {
            tree: shard_bytes(leaves.get(tree, param), specs[tree], axis_sizes) for tree in TREES
        }
        nbytes["optimizer"] = state_bytes[path]
        moved = traffic(param, weights[path], specs, placement, microbatches, passes)
        if path in dealt:
            moved[DEAL] = dealt[path]
        number = match.number if match.number != NO_RULE else None
        parameters[path] = {
            "shape": list(param.shape),
            "dimensions": (letters or {}).get(path, ""),
            "rule": {"number": number, "spec": match.chosen},
            "trees": {
                tree: {
                    "spec": spec_entries(spec),
                    "shape": list(shard_shape(param.shape, spec, axis_sizes)),
                    "bytes": nbytes[tree],
                }
                for tree, spec in specs.items()
            },
            "bytes_moved_a_step": {name: n for name, n in moved.items() if n},
        }
    held = {tree: sum(p["trees"][tree]["bytes"] for p in parameters.values()) for tree in TREES}
    held["optimizer"] += state_bytes[None]
    every = [p["bytes_moved_a_step"] for p in parameters.values()]
    names = (*COLLECTIVES, *[DEAL] * any(DEAL in p for p in every))
    return {
        "layout": placement.layout,
        "mesh": dict(axis_sizes),
        "bytes_a_device": held,
        "bytes_moved_a_step": {name: sum(p.get(name, 0) for p in every) for name in names},
        "rules": list(_rules(match_of, parameters, axis_sizes)),
        "parameters": parameters,
    }


def placement_of(record: Record) -> Record:
    """The part of the record that a lock must match: not which rules, but what they lead to."""
    parameters = record["parameters"].items()
    rest = {name: value for name, value in record.items() if name != "rules"}
    return rest | {"parameters": {path: p | {"rule": None} for path, p in parameters}}


def spec_entries(spec: P) -> list[Any]:
    """For each dimension an axis, a list of axes, or None."""
    return [list(entry) if isinstance(entry, tuple) else entry for entry in spec]


def _rules(
    match_of: Mapping[str, Match], parameters: Record, sizes: Mapping[str, int]
) -> Iterator[Record]:
    """What each rule places; replicated is what the rule, and not the layout, leaves whole."""
    by_number: dict[int, dict[str, Match]] = {}
    for path, match in match_of.items():
        by_number.setdefault(match.number, {})[path] = match
    by_number.pop(NO_RULE, None)
    for number, matches in sorted(by_number.items()):
        nbytes, whole = {}, []
        for path, match in matches.items():
            nbytes[path] = sum(part["bytes"] for part in parameters[path]["trees"].values())
            shape = tuple(parameters[path]["shape"])
            if shard_shape(shape, P(*match.value), sizes) == shape:
                whole.append(path)
        yield {
            "number": number,
            "regex": match.regex,
            "specs": [spec_entries(P(*spec)) for spec in match.values],
            "tensors": len(nbytes),
            "bytes": sum(nbytes.values()),
            "replicated_bytes": sum(nbytes[path] for path in whole),
        }


def traffic(
    param: Any,
    weight: Any,
    specs: Mapping[str, P],
    placement: Placement,
    microbatches: int,
    passes: int,
) -> dict[str, int]:
    """Bytes through each device in a step, by collective, for one parameter.

    `param` and `weight` are its shapes as stored, in float32 as its gradient, and in the compute
    dtype. A microbatch gathers a layer in each of `passes`.
    """
    axis_sizes, roles = placement.axis_sizes, placement.roles
    compute = specs["compute"]
    whole = keep(compute, [axis for axis in axis_sizes if roles[axis] != BATCH])
    batch_axes = [axis for axis in axis_sizes if roles[axis] == BATCH]
    in_layers = [axis for axis in batch_axes if axis in axes_of(compute)]
    once = [axis for axis in batch_axes if axis not in in_layers]
    moved = (
        gathered(weight, specs["stored"], compute, axis_sizes),
        gathered(weight, compute, whole, axis_sizes) * passes * microbatches,
        _reduce(weight, whole, compute, in_layers, axis_sizes) * microbatches,
        _reduce(param, compute, specs["gradients"], once, axis_sizes),
        gathered(param, specs["optimizer"], specs["stored"], axis_sizes),
    )
    return dict(zip(COLLECTIVES, moved, strict=True))


def gathered(leaf: Any, source: P, target: P, axis_sizes: Mapping[str, int]) -> int:
    """An all-gather over the axes that `source` splits and `target` does not."""
    n = _devices(set(axes_of(source)) - set(axes_of(target)), axis_sizes)
    return shard_bytes(leaf, target, axis_sizes) * (n - 1) // n


def _reduce(
    leaf: Any, source: P, target: P, summed: Iterable[str], axis_sizes: Mapping[str, int]
) -> int:
    """A reduce-scatter over the summed axes that `target` splits, an all-reduce over the others."""
    scattered = set(axes_of(target)) - set(axes_of(source))
    n, others = _devices(scattered, axis_sizes), _devices(set(summed) - scattered, axis_sizes)
    size = shard_bytes(leaf, source, axis_sizes)
    return size * (n - 1) // n + 2 * (size // n) * (others - 1) // others


def _devices(axes: Iterable[str], axis_sizes: Mapping[str, int]) -> int:
    return math.prod(axis_sizes[axis] for axis in axes)
