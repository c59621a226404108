"""NVIDIA GPUs described to their compiler, a part of JAX's plugin for CUDA, which needs none."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

import jax
from jax.experimental import topologies

from gpt_pjit.core.chips import GPU_SHARE, Chip

PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
A_HOST = 8  # devices


class Gpu(NamedTuple):
    """What its driver reports (openxla/xla, xla/backends/gpu/target_config/specs)."""

    capability: int
    cores: int
    units: int  # of float32 in a core
    ghz: float
    cache: int  # bytes that all cores share
    shared: int  # bytes of a core


AMPERE = Gpu(8, 108, 64, 1.41, 41943040, 167936)
HOPPER = Gpu(9, 132, 128, 1.98, 52428800, 233472)
GPUS = {"a100-40gb": AMPERE, "a100": AMPERE, "h100": HOPPER, "h200": HOPPER}
CONFIG = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {most_shared}
  shared_memory_per_core: {gpu.shared}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.units}
  clock_rate_ghz: {gpu.ghz}
  l2_cache_size: {gpu.cache}
  memory_bandwidth: {bandwidth}
  device_memory_size: {memory}
  cuda_compute_capability {{ major: {gpu.capability} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{kind}"
"""


def has_compiler() -> bool:
    return any(map(find_spec, PLUGINS))


def gpus_described(chip: Chip, devices: int) -> Sequence[jax.Device]:
    """Devices that nothing runs on, to compile for."""
    gpu, hosts = GPUS[chip.name], 1 if devices % A_HOST else devices // A_HOST
    config = CONFIG.format(
        gpu=gpu,
        most_shared=gpu.shared - 1024,  # which the driver keeps for itself in every block
        bandwidth=round(chip.hbm_bandwidth),
        memory=round(chip.usable_bytes / GPU_SHARE),
        kind=chip.kinds[0],
    )
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=config, topology=f"1x{hosts}x{devices // hosts}"
    )
    return topology.devices
