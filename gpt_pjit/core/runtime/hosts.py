"""Devices and hosts: how many there are, which rows of a batch they hold, how hosts meet."""

import functools
import itertools
import math
import os
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from gpt_pjit.config import MeshConfig
from gpt_pjit.core.chips import GPU_SHARE
from gpt_pjit.core.cluster import SECONDS_TO_MEET, find_cluster, meet
from gpt_pjit.core.console import mute, warn
from gpt_pjit.core.cores import usable_cores
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.runtime.programs import keep_programs
from gpt_pjit.core.runtime.together import everyone, watch_for_failure

HEARTBEAT_SECONDS = 30  # without one for so long JAX aborts; by default, 100
# The environment may set these; the results of a run must not depend on it.
OURS: dict[str, Any] = {
    "jax_enable_x64": False,
    "jax_disable_jit": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_default_matmul_precision": None,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
}


def initialize_devices(
    mesh: MeshConfig,
    rows: int | None = None,
    *,
    distributed: bool = False,
    limit: float = SECONDS_TO_MEET,
) -> None:
    """Call before anything touches a device. Joins the other hosts, sets the number of CPU devices.

    Hosts are joined wherever the environment names them; `distributed` requires that it does.
    `rows` is the size of a microbatch, if one will be split over the devices. `limit` is how many
    seconds the hosts wait for each other.
    """
    for name, value in OURS.items():
        if getattr(jax.config, name) != value:
            warn(f"{name.upper()}={getattr(jax.config, name)} is ignored: gpt_pjit sets it")
            jax.config.update(name, value)
    # Signals are ours (watch.py): JAX's own handler would swallow SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(GPU_SHARE))
    cluster = find_cluster(distributed)
    if cluster:
        address = meet(cluster, limit=limit)
        _without_a_proxy(address)
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            address,
            cluster.processes,
            cluster.process,
            local_device_ids=cluster.gpus,
            cluster_detection_method="deactivate",  # it is done
            coordinator_bind_address=address,  # by default JAX listens on every interface
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
        watch_for_failure()  # before the first device: hosts wait for each other to find them
    elif "JAX_NUM_CPU_DEVICES" not in os.environ and "device_count" not in os.environ.get(
        "XLA_FLAGS", ""
    ):
        jax.config.update("jax_num_cpu_devices", cpu_devices(mesh, rows, usable_cores()))
    try:
        process = jax.process_index()
    except (RuntimeError, AssertionError):  # JAX asserts if a platform has no device
        wanted = os.environ.get("JAX_PLATFORMS", "")
        problem = f"JAX_PLATFORMS={wanted}: JAX finds no such device on this machine"
        remedy = "unset it, or install JAX for that device"
        if not wanted:
            problem, remedy = "JAX finds no device", "install JAX for this machine's devices"
        raise ConfigError([f"{problem}; {remedy}"], "environment") from None
    if process != 0:
        mute()
    keep_programs()


def connect(mesh: Mesh) -> None:
    """Connects the CPU devices of all processes along the axes of the mesh, while all are here.

    Otherwise the first collective does, in which Gloo waits for 30 s: less than one process may
    compile for longer than another.
    """
    if jax.process_count() == 1 or jax.default_backend() != "cpu":
        return
    split = [axis for axis, size in mesh.shape.items() if size > 1]
    groups = [axes for n in range(len(split)) for axes in itertools.combinations(split, n + 1)]

    def total(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
        rest = P(tuple(axis for axis in split if axis not in axes))
        return jax.shard_map(lambda part: jax.lax.psum(part, axes), out_specs=rest)(x)

    sharding = NamedSharding(mesh, P(tuple(split)))
    x = jax.make_array_from_callback((mesh.size,), sharding, lambda _: np.zeros(1, np.float32))
    everyone(None)
    with jax.set_mesh(mesh):
        jax.block_until_ready(jax.jit(lambda x: [total(x, axes) for axes in groups])(x))


def _without_a_proxy(address: str) -> None:
    """Keeps gRPC from asking a proxy of the web for the coordinator, where it would hang."""
    variable = "no_grpc_proxy"  # in lower case: gRPC reads no other
    others = os.environ.get(variable) or os.environ.get("no_proxy")
    host = address.rpartition(":")[0].strip("[]")
    os.environ[variable] = f"{host},{others}" if others else host
    jax.config.update("jax_check_proxy_envs", False)  # it warns of that hang


def cpu_devices(mesh: MeshConfig, rows: int | None, cores: int) -> int:
    """How many CPU devices to make: as the mesh says, or as many as cores and batch allow.

    One device per core is faster than one device that uses all cores.
    """
    fixed = math.prod(size for size in (mesh.replica, mesh.data, mesh.tensor) if size != -1)
    if -1 not in (mesh.replica, mesh.data, mesh.tensor):
        return fixed

    def fits(rest: int) -> bool:
        parts = math.prod(rest if n == -1 else n for n in (mesh.replica, mesh.data))
        return rows is None or rows % parts == 0

    return fixed * max(filter(fits, range(1, cores // fixed + 1)), default=1)


@functools.cache  # asked for in every step
def local_rows(
    sharding: NamedSharding, shape: tuple[int, ...], process: int | None = None
) -> np.ndarray:
    """The rows of a batch of `shape` on the devices of `process` (default: this one), in order.

    On many pods they are not one range: a mesh follows the links between chips, not the hosts.
    """
    process = jax.process_index() if process is None else process
    indices: Any = sharding.devices_indices_map(shape).items()
    rows = [index[0] for device, index in indices if device.process_index == process]
    return np.unique(np.concatenate([np.arange(shape[0])[part] for part in rows]))


def global_array(sharding: NamedSharding, local: np.ndarray, n_rows: int) -> jax.Array:
    """The array of `n_rows` rows; `local` holds the `local_rows` of this process."""
    shape = (n_rows, *local.shape[1:])
    rows = local_rows(sharding, shape)
    assert len(rows) == len(local), (len(rows), local.shape)

    def part(index: Any) -> np.ndarray:
        start, stop, _ = index[0].indices(n_rows)
        first = np.searchsorted(rows, start)
        return local[(slice(first, first + stop - start), *index[1:])]

    # Explicit, but with several processes JAX counts this transfer as implicit.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_callback(shape, sharding, part)


def global_batch(
    sharding: NamedSharding, batch: Iterable[np.ndarray | None], n_rows: int
) -> list[jax.Array | None]:
    return [None if part is None else global_array(sharding, part, n_rows) for part in batch]
