"""What a training step moves between devices for the sake of the parameters, from specs alone.

Ring formulas: of a tensor of B bytes over n devices, an all-gather and a reduce-scatter move
(n - 1) / n * B through each device, an all-reduce twice that. What tensor parallelism moves of the
activations is not counted, nor the scalars of the metrics.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from gpt_pjit.core.sharding import BATCH_AXES, axes_of, shard_bytes, without_batch_axes

COLLECTIVES = (
    "gather weights, once",
    "gather weights, layer by layer",
    "reduce gradients, layer by layer",
    "reduce gradients, once",
    "gather updated parameters",
)


def traffic(
    param: Any,
    weight: Any,
    specs: Mapping[str, P],
    axis_sizes: Mapping[str, int],
    microbatches: int,
    passes: int,
) -> dict[str, int]:
    """Bytes through each device in a step, by collective, for one parameter.

    `param` and `weight` are its shapes as stored and in the compute dtype, `specs` those of the
    four trees, `passes` how often a microbatch gathers a layer: forward, and backward if it
    recomputes.
    """
    gradient = jax.ShapeDtypeStruct(param.shape, jnp.float32)
    compute, whole = specs["compute"], without_batch_axes(specs["compute"])
    in_layers = [axis for axis in BATCH_AXES if axis in axes_of(compute)]
    once = [axis for axis in BATCH_AXES if axis not in in_layers]
    moved = (
        _gather(weight, specs["stored"], compute, axis_sizes),
        _gather(weight, compute, whole, axis_sizes) * passes * microbatches,
        _reduce(weight, whole, compute, in_layers, axis_sizes) * microbatches,
        _reduce(gradient, compute, specs["gradients"], once, axis_sizes),
        _gather(param, specs["optimizer"], specs["stored"], axis_sizes),
    )
    return dict(zip(COLLECTIVES, moved, strict=True))


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
