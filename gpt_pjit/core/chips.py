"""Published figures of chips.

Sources. TPU v2, v3: Jouppi et al. 2020, A Domain-Specific Supercomputer for Training Deep Neural
Networks (rates, clock, links). TPU v4: Jouppi et al. 2023, TPU v4. Later TPUs: Google Cloud's page
of each; their clock is the peak rate over the operations per cycle that the compiler counts.
GPUs: NVIDIA's data sheets, dense rates, and the clock that these are for. `usable_bytes` of a TPU
is what its compiler reports as available (libtpu 0.0.42), of a GPU the share of its memory that a
run takes; `vmem_bytes` is what JAX's Pallas gives for it. `operation_bytes` is our choice: with
more of the VMEM for an operation, its tiles are larger and are loaded less often; with less, more
arrays stay there between operations (docs/performance.md has what it gains).
"""

import os
from dataclasses import dataclass

GIB = 2**30
MIB = 2**20
OPERATION_VMEM = "xla_tpu_scoped_vmem_limit_kib"
GPU_SHARE = 0.92  # of its memory, for a run; JAX takes 0.75 unless it is told


@dataclass(frozen=True)
class Chip:
    """Figures of one JAX device, except `link_bandwidth`: bytes/s out of a chip over all links."""

    name: str
    kinds: tuple[str, ...]  # values of `jax.Device.device_kind`
    peak_flops: float  # dense bfloat16 FLOP/s
    usable_bytes: int  # of its memory, by a program
    hbm_bandwidth: float  # bytes/s, from the source of the rates
    link_bandwidth: float
    clock: float  # Hz
    devices_per_chip: int = 1
    vmem_bytes: int = 0  # of a core, for kernels; 0: kernels are not compiled for it
    operation_bytes: int = 0  # of the VMEM, for one operation; 0: as the compiler has it

    @property
    def is_gpu(self) -> bool:
        return self.kinds[0].startswith("NVIDIA")

    @property
    def link_per_device(self) -> float:
        """Bytes/s that a device can send while the others on its chip send as much."""
        return self.link_bandwidth / self.devices_per_chip


def _gib(n: float) -> int:
    return round(n * GIB)


def _gpu(memory: int) -> int:
    return round(memory * GPU_SHARE)


# A core of v2 and v3 is a device; v4 and v5p join the two cores of a chip into one ("megacore").
CHIPS = (
    Chip("v2", ("TPU v2",), 22.5e12, _gib(7.48), 350e9, 4 * 62e9, 0.7e9, 2),
    Chip("v3", ("TPU v3",), 61.5e12, _gib(15.48), 450e9, 4 * 82e9, 0.94e9, 2),
    Chip("v4", ("TPU v4",), 275e12, _gib(30.75), 1.2e12, 6 * 50e9, 1.05e9, 1, 16 * MIB),
    Chip("v5e", ("TPU v5 lite",), 197e12, _gib(15.75), 819e9, 4 * 50e9, 1.5e9, 1, 128 * MIB),
    Chip("v5p", ("TPU v5p", "TPU v5"), 459e12, _gib(95.74), 2.765e12, 6e11, 1.75e9, 1, 64 * MIB),
    Chip(
        "v6e", ("TPU v6 lite",), 918e12, _gib(31.25), 1.64e12, 4e11, 1.75e9, 1, 128 * MIB, 64 * MIB
    ),
    Chip(
        "a100-40gb", ("NVIDIA A100-SXM4-40GB",), 312e12, _gpu(42331013120), 1.555e12, 3e11, 1.41e9
    ),
    Chip("a100", ("NVIDIA A100-SXM4-80GB",), 312e12, _gpu(85100068864), 2.039e12, 3e11, 1.41e9),
    Chip("h100", ("NVIDIA H100 80GB HBM3",), 989e12, _gpu(84942979072), 3.35e12, 4.5e11, 1.83e9),
    Chip("h200", ("NVIDIA H200",), 989e12, _gpu(151397597184), 4.8e12, 4.5e11, 1.83e9),
)


def chip_of_kind(device_kind: str) -> Chip | None:
    return next((chip for chip in CHIPS if device_kind in chip.kinds), None)


def compiler_options(device_kind: str) -> dict[str, str]:
    """Of `jax.jit`, for a training step; a flag in LIBTPU_INIT_ARGS stands."""
    chip, flags = chip_of_kind(device_kind), os.environ.get("LIBTPU_INIT_ARGS", "")
    if chip is None or not chip.operation_bytes or OPERATION_VMEM in flags:
        return {}
    return {OPERATION_VMEM: str(chip.operation_bytes // 1024)}
