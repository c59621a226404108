"""Devices and hosts: how many, who holds which rows of a batch, and how hosts meet."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from gpt_pjit.config import Config
from gpt_pjit.core.console import mute
from gpt_pjit.core.cores import usable_cores


def start(config: Config, distributed: bool = False) -> None:
    """Call before anything touches a device. Joins the other hosts, sets the number of CPU devices.

    Hosts are joined where the environment names them (`JAX_COORDINATOR_ADDRESS`,
    `JAX_NUM_PROCESSES`, `JAX_PROCESS_ID`), or where `distributed` asks JAX to detect the cluster.
    """
    coordinator = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if coordinator:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            coordinator_address=coordinator,
            num_processes=int(os.environ["JAX_NUM_PROCESSES"]),
            process_id=int(os.environ["JAX_PROCESS_ID"]),
            coordinator_bind_address=coordinator,  # JAX's default is every interface
        )
    elif distributed:
        jax.distributed.initialize()
    elif "JAX_NUM_CPU_DEVICES" not in os.environ and "device_count" not in os.environ.get(
        "XLA_FLAGS", ""
    ):
        jax.config.update("jax_num_cpu_devices", cpu_devices(config, usable_cores()))
    if jax.process_index() != 0:
        mute()


def cpu_devices(config: Config, cores: int) -> int:
    """CPU devices for one machine: as the mesh says, or as many as cores and batch allow.

    One device per core is a tiny pod, and faster than one device with all cores.
    """
    mesh = config.mesh
    fixed = math.prod(size for size in (mesh.replica, mesh.data, mesh.tensor) if size != -1)
    if -1 not in (mesh.replica, mesh.data, mesh.tensor):
        return fixed
    rows = config.data.batch_size // config.optim.microbatches

    def fits(rest: int) -> bool:
        return rows % math.prod(rest if n == -1 else n for n in (mesh.replica, mesh.data)) == 0

    return fixed * max(filter(fits, range(1, cores // fixed + 1)), default=1)


def local_rows(sharding: NamedSharding, shape: tuple[int, ...]) -> slice:
    """The contiguous rows of a batch of `shape` that this process's devices hold."""
    indices = sharding.addressable_devices_indices_map(shape).values()
    bounds = [index[0].indices(shape[0])[:2] for index in indices if index is not None]
    return slice(min(start for start, _ in bounds), max(stop for _, stop in bounds))


def global_array(sharding: NamedSharding, local: np.ndarray, rows: int) -> jax.Array:
    """The array of `rows` rows in all of which this process has `local`."""
    # Asked for, but on several processes JAX counts this transfer as an implicit one.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_process_local_data(sharding, local, (rows, *local.shape[1:]))


def global_batch(
    sharding: NamedSharding, batch: Iterable[np.ndarray | None], rows: int
) -> list[jax.Array | None]:
    """`global_array` of each array of a batch."""
    return [None if part is None else global_array(sharding, part, rows) for part in batch]


def wait_for_all(name: str) -> None:
    """A barrier across processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
