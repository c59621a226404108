"""Where every parameter lives, by which rule, and what a training step moves for its sake.

The answer is a record of plain values: --json prints it, a lock keeps it, tables and pages show it.

Traffic follows from specs alone, by the formulas of a ring: of B bytes over n devices, an
all-gather and a reduce-scatter move (n - 1) / n * B through each device, an all-reduce twice that;
an all-to-all moves (n - 1) / n of what a device holds. The activations that tensor parallelism
moves are not counted, nor the scalars of the metrics.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import PartitionSpec as P, use_abstract_mesh

from gpt_pjit.config import Config
from gpt_pjit.core.model import sharding_rules
from gpt_pjit.core.parameters import gpt_dimensions
from gpt_pjit.core.sharding import (
    BATCH_AXES,
    Match,
    Rules,
    abstract_mesh,
    axes_of,
    match_rules,
    mesh_shape,
    paths_and_leaves,
    shard_bytes,
    shard_shape,
    state_parameters,
    values,
    without_batch_axes,
)
from gpt_pjit.core.training import (
    Training,
    build_training,
    chosen_optimizers,
    dealing,
    make_optimizer,
)
from gpt_pjit.pages import Record

TREES = ("stored", "compute", "gradients", "optimizer")
COLLECTIVES = (
    "gather weights, once",
    "gather weights, layer by layer",
    "reduce gradients, layer by layer",
    "reduce gradients, once",
    "gather updated parameters",
)
DEAL = "deal matrices to Muon"  # in records of those that use it


def explain_config(config: Config, devices: int) -> Record:
    """The placement of a config's training step; all bytes are those of one device.

    Raises ConfigError as `build_training` does.
    """
    c, sizes = config.model, config.mesh
    mesh = abstract_mesh(mesh_shape(sizes.replica, sizes.data, sizes.tensor, devices))
    training = build_training(config, mesh)
    placement, params = training.model.placement, training.state.params
    axis_sizes = placement.axis_sizes
    with use_abstract_mesh(mesh):
        weights = dict(paths_and_leaves(jax.eval_shape(training.model.gather_weights, params)))
    letters = dict(paths_and_leaves(values(match_rules(gpt_dimensions(c), params))))
    match_of = dict(paths_and_leaves(placement.matches))
    specs_of = {tree: dict(paths_and_leaves(getattr(placement, tree))) for tree in TREES}
    state_bytes = optimizer_bytes(config, training)
    optimizers = chosen_optimizers(config, params)
    passes = 1 if c.remat == "none" else 2  # without remat the backward pass keeps the weights
    parameters: Record = {}
    for path, param in paths_and_leaves(params):
        leaves = {"stored": param, "compute": weights[path], "gradients": param}
        specs = {tree: specs_of[tree][path] for tree in TREES}
        nbytes = {tree: shard_bytes(leaf, specs[tree], axis_sizes) for tree, leaf in leaves.items()}
        nbytes["optimizer"] = state_bytes[path]
        moved = traffic(param, weights[path], specs, axis_sizes, config.optim.microbatches, passes)
        if optimizers[path][0] == "muon":
            moved[DEAL] = dealt(weights[path], letters[path], specs["optimizer"], axis_sizes)
        parameters[path] = {
            "shape": list(param.shape),
            "dimensions": letters[path],
            "rule": {"number": match_of[path].number, "spec": match_of[path].chosen},
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
    rules = sharding_rules(c, config.partition)
    return {
        "layout": placement.layout,
        "mesh": dict(axis_sizes),
        "bytes_a_device": held,
        "bytes_moved_a_step": {name: sum(p.get(name, 0) for p in every) for name in names},
        "rules": list(_rules(rules, match_of, parameters, axis_sizes)),
        "parameters": parameters,
    }


def optimizer_bytes(config: Config, training: Training) -> Counter[str | None]:
    """Bytes of the optimizer's state by parameter; under None, what belongs to no parameter."""
    state = training.state
    owners = state_parameters(make_optimizer(config, state.params), state.params)
    held: Counter[str | None] = Counter({None: state.step.dtype.itemsize})
    for path, leaf in paths_and_leaves(state.opt_state):
        held[owners[path]] += shard_bytes(leaf, leaf.sharding.spec, training.mesh.shape)
    return held


def placement_of(record: Record) -> Record:
    """The part of the record that a lock must match: not which rules, but what they lead to."""
    parameters = record["parameters"].items()
    rest = {name: value for name, value in record.items() if name != "rules"}
    return rest | {"parameters": {path: p | {"rule": None} for path, p in parameters}}


def spec_entries(spec: P) -> list[Any]:
    """For each dimension an axis, a list of axes, or None."""
    return [list(entry) if isinstance(entry, tuple) else entry for entry in spec]


def _rules(
    rules: Rules, match_of: Mapping[str, Match], parameters: Record, sizes: Mapping[str, int]
) -> Iterator[Record]:
    """What each rule places; replicated is what the rule, and not the layout, leaves whole."""
    for number, (regex, *specs) in enumerate(rules):
        nbytes, whole = {}, []
        for path, match in match_of.items():
            if match.number == number:
                parts = parameters[path]["trees"].values()
                nbytes[path] = sum(part["bytes"] for part in parts)
                shape = tuple(parameters[path]["shape"])
                if shard_shape(shape, P(*match.value), sizes) == shape:
                    whole.append(path)
        yield {
            "number": number,
            "regex": regex,
            "specs": [spec_entries(P(*spec)) for spec in specs],
            "tensors": len(nbytes),
            "bytes": sum(nbytes.values()),
            "replicated_bytes": sum(nbytes[path] for path in whole),
        }


def traffic(
    param: Any,
    weight: Any,
    specs: Mapping[str, P],
    axis_sizes: Mapping[str, int],
    microbatches: int,
    passes: int,
) -> dict[str, int]:
    """Bytes through each device in a step, by collective, for one parameter.

    `param` and `weight` are its shapes as stored, in float32 as its gradient, and in the compute
    dtype. A microbatch gathers a layer in each of `passes`.
    """
    compute, whole = specs["compute"], without_batch_axes(specs["compute"])
    in_layers = [axis for axis in BATCH_AXES if axis in axes_of(compute)]
    once = [axis for axis in BATCH_AXES if axis not in in_layers]
    moved = (
        _gather(weight, specs["stored"], compute, axis_sizes),
        _gather(weight, compute, whole, axis_sizes) * passes * microbatches,
        _reduce(weight, whole, compute, in_layers, axis_sizes) * microbatches,
        _reduce(param, compute, specs["gradients"], once, axis_sizes),
        _gather(param, specs["optimizer"], specs["stored"], axis_sizes),
    )
    return dict(zip(COLLECTIVES, moved, strict=True))


def dealt(weight: Any, dimensions: str, spec: P, axis_sizes: Mapping[str, int]) -> int:
    """Bytes through each device when Muon deals a parameter out and takes it back.

    For each axis that splits a matrix an all-to-all both ways; for any other an all-gather on the
    way back. A table that splits the layers has them gathered first.
    """
    deal = dealing(dimensions, weight.shape, spec, axis_sizes)
    within = deal.order[len(deal.order) - len(deal.shape) + 1 :]
    apart = P(*(entry if dim in within else None for dim, entry in enumerate(spec)))
    stack = jax.ShapeDtypeStruct(deal.shape, weight.dtype)
    total = _gather(weight, spec, apart, axis_sizes)
    for (axis, n), source in zip(axis_sizes.items(), deal.specs[:-1], strict=True):
        ways = 2 if axis in axes_of(source) else 1
        total += ways * (shard_bytes(stack, source, axis_sizes) * (n - 1) // n)
    return total


def _gather(leaf: Any, source: P, target: P, axis_sizes: Mapping[str, int]) -> int:
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
