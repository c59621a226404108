"""The record of a config's training step: its placement, its optimizer, and what it moves."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import PartitionSpec as P, use_abstract_mesh

from gpt_pjit.config import Config
from gpt_pjit.core.parameters import gpt_dimensions
from gpt_pjit.core.sharding import (
    abstract_mesh,
    axes_of,
    match_rules,
    mesh_shape,
    paths_and_leaves,
    shard_bytes,
    state_parameters,
    values,
)
from gpt_pjit.core.training import (
    Training,
    build_training,
    chosen_optimizers,
    dealing,
    make_optimizer,
)
from gpt_pjit.partition.explain import Record, described, gathered


def explain_config(config: Config, devices: int) -> Record:
    """The placement of a config's training step; all bytes are those of one device.

    Raises ConfigError as `build_training` does.
    """
    c, sizes = config.model, config.mesh
    mesh = abstract_mesh(mesh_shape(sizes.replica, sizes.data, sizes.tensor, devices))
    training = build_training(config, mesh)
    placement, params = training.model.placement, training.state.params
    with use_abstract_mesh(mesh):
        weights = dict(paths_and_leaves(jax.eval_shape(training.model.gather_weights, params)))
    letters = dict(paths_and_leaves(values(match_rules(gpt_dimensions(c), params))))
    specs = dict(paths_and_leaves(placement.optimizer))
    return described(
        placement,
        dict(paths_and_leaves(params)),
        weights,
        optimizer_bytes(config, training),
        letters,
        config.optim.microbatches,
        passes=1 if c.remat == "none" else 2,  # without remat the backward pass keeps the weights
        dealt={
            path: dealt(weights[path], letters[path], specs[path], placement.axis_sizes)
            for path, (name, _) in chosen_optimizers(config, params).items()
            if name == "muon"
        },
    )


def optimizer_bytes(config: Config, training: Training) -> Counter[str | None]:
    """Bytes of the optimizer's state by parameter; under None, what belongs to no parameter."""
    state = training.state
    owners = state_parameters(make_optimizer(config, state.params), state.params)
    held: Counter[str | None] = Counter({None: state.step.dtype.itemsize})
    for path, leaf in paths_and_leaves(state.opt_state):
        held[owners[path]] += shard_bytes(leaf, leaf.sharding.spec, training.mesh.shape)
    return held


def dealt(weight: Any, dimensions: str, spec: P, axis_sizes: Mapping[str, int]) -> int:
    """Bytes through each device when Muon deals a parameter out and takes it back.

    For each axis that splits a matrix an all-to-all both ways; for any other an all-gather on the
    way back. A table that splits the layers has them gathered first.
    """
    deal = dealing(dimensions, weight.shape, spec, axis_sizes)
    within = deal.order[len(deal.order) - len(deal.shape) + 1 :]
    apart = P(*(entry if dim in within else None for dim, entry in enumerate(spec)))
    stack = jax.ShapeDtypeStruct(deal.shape, weight.dtype)
    total = gathered(weight, spec, apart, axis_sizes)
    for (axis, n), source in zip(axis_sizes.items(), deal.specs[:-1], strict=True):
        ways = 2 if axis in axes_of(source) else 1
        total += ways * (shard_bytes(stack, source, axis_sizes) * (n - 1) // n)
    return total
