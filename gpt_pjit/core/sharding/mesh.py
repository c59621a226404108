"""The mesh: `replica` and `data` split the batch, `data` also the state, `tensor` the model."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
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


def make_mesh(shape: tuple[int, int, int], devices: Sequence[Any] | None = None) -> Mesh:
    """An explicit-mode mesh: the sharding of every array is part of its type.

    Its order follows the links between devices. `replica` spans slices, if there are several.
    `devices` may be stand-ins: objects with the attributes by which JAX orders devices, and the
    `device` that each represents. Raises ConfigError if no such mesh can be made.
    """
    devices = jax.devices() if devices is None else devices
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    sizes = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, shape, strict=True))
    if shape[0] % slices:
        constraint = f"mesh.replica must be a multiple of the {slices} slices"
        raise ConfigError([Problem("mesh", sizes, constraint, f"try mesh.replica={slices}")])
    inside = (shape[0] // slices, *shape[1:])
    try:
        if slices > 1:
            grid = mesh_utils.create_hybrid_device_mesh(
                inside, (slices, 1, 1), devices, allow_split_physical_axes=True
            )
        else:
            grid = mesh_utils.create_device_mesh(inside, devices, allow_split_physical_axes=True)
    except (NotImplementedError, ValueError) as error:
        constraint = f"these devices cannot form such a mesh: {error}"
        raise ConfigError([Problem("mesh", sizes, constraint, "choose other sizes")]) from None
    for place, device in np.ndenumerate(grid):
        grid[place] = getattr(device, "device", device)
    return Mesh(grid, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def abstract_mesh(shape: tuple[int, int, int]) -> Any:
    """The same mesh without devices, for programs that are inspected but not run."""
    return AbstractMesh(shape, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def device_kind(mesh: Mesh | AbstractMesh | None = None) -> str:
    """`jax.Device.device_kind` of the devices of a mesh, by default the one that is set; "" if it
    is not known.
    """
    device = (mesh or jax.sharding.get_abstract_mesh()).abstract_mesh.abstract_device
    return device.device_kind if device else ""
