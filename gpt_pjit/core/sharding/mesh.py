"""The mesh: `replica` and `data` split the batch, `data` also the state, `tensor` the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from gpt_pjit.core.errors import ConfigError, Problem

REPLICA, DATA, TENSOR = "replica", "data", "tensor"
AXES = (REPLICA, DATA, TENSOR)
BATCH_AXES = (REPLICA, DATA)  # a batch is split over both; gradients are summed over both


def mesh_shape(replica: int, data: int, tensor: int, n_devices: int) -> tuple[int, int, int]:
    """The three sizes with the one that is -1 filled in; raises ConfigError if they do not fit."""
    sizes = dict(zip(AXES, (replica, data, tensor), strict=True))
    fixed = math.prod(size for size in sizes.values() if size != -1)
    filled = {axis: n_devices // fixed if size == -1 else size for axis, size in sizes.items()}
    if math.prod(filled.values()) != n_devices:
        written = ", ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
        constraint = f"these multiply to {fixed}, but there are {n_devices} devices"
        if -1 in sizes.values():
            constraint = (
                f"the sizes given multiply to {fixed}, which does not divide {n_devices} devices"
            )
        divisors = [d for d in range(1, n_devices + 1) if n_devices % d == 0]
        remedy = f"sizes that work divide {n_devices}: {', '.join(map(str, divisors))}"
        raise ConfigError([Problem("mesh", written, constraint, remedy)])
    return filled[REPLICA], filled[DATA], filled[TENSOR]


def make_mesh(shape: tuple[int, int, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """An explicit-mode mesh: the sharding of every array is part of its type."""
    kinds = (AxisType.Explicit,) * len(AXES)
    return jax.make_mesh(shape, AXES, axis_types=kinds, devices=devices)


def abstract_mesh(shape: tuple[int, int, int]) -> Any:
    """The same mesh of no devices: a program that is looked at, and not run, takes it as a Mesh."""
    return AbstractMesh(shape, AXES, axis_types=(AxisType.Explicit,) * len(AXES))
