"""Published figures of chips.

Sources. TPU v2, v3: Jouppi et al. 2020, A Domain-Specific Supercomputer for Training Deep Neural
Networks (rates, clock, links). TPU v4: Jouppi et al. 2023, TPU v4. Later TPUs: Google Cloud's page
of each; their clock is the peak rate over the operations per cycle that the compiler counts.
GPUs: NVIDIA's data sheets, dense rates. `usable_bytes` of a TPU is what its compiler reports
as available (libtpu 0.0.42).
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """Figures of one JAX device, except `link_bandwidth`: bytes/s out of a chip over all links."""

    name: str
    kinds: tuple[str, ...]  # values of `jax.Device.device_kind`
    peak_flops: float  # dense bfloat16 FLOP/s
    usable_bytes: int  # of its memory, by a program
    hbm_bandwidth: float  # bytes/s
    link_bandwidth: float
    clock: float | None = None  # Hz
    devices_per_chip: int = 1

    @property
    def link_per_device(self) -> float:
        """Bytes/s that a device can send while the others on its chip send as much."""
        return self.link_bandwidth / self.devices_per_chip


def _gib(n: float) -> int:
    return round(n * GIB)


# A core of v2 and v3 is a device; v4 and v5p join the two cores of a chip into one ("megacore").
CHIPS = (
    Chip("v2", ("TPU v2",), 22.5e12, _gib(7.48), 350e9, 4 * 62e9, 0.7e9, 2),
    Chip("v3", ("TPU v3",), 61.5e12, _gib(15.48), 450e9, 4 * 82e9, 0.94e9, 2),
    Chip("v4", ("TPU v4",), 275e12, _gib(30.75), 1.2e12, 6 * 50e9, 1.05e9),
    Chip("v5e", ("TPU v5 lite",), 197e12, _gib(15.75), 819e9, 4 * 50e9, 1.5e9),
    Chip("v5p", ("TPU v5p", "TPU v5"), 459e12, _gib(95.74), 2.765e12, 6e11, 1.75e9),
    Chip("v6e", ("TPU v6 lite",), 918e12, _gib(31.25), 1.64e12, 4e11, 1.75e9),
    Chip("a100-40gb", ("NVIDIA A100-SXM4-40GB",), 312e12, 40 * 10**9, 1.555e12, 3e11),
    Chip("a100", ("NVIDIA A100-SXM4-80GB",), 312e12, 80 * 10**9, 2.039e12, 3e11),
    Chip("h100", ("NVIDIA H100 80GB HBM3",), 989e12, 80 * 10**9, 3.35e12, 4.5e11),
    Chip("h200", ("NVIDIA H200",), 989e12, 141 * 10**9, 4.8e12, 4.5e11),
)


def chip_of_kind(device_kind: str) -> Chip | None:
    return next((chip for chip in CHIPS if device_kind in chip.kinds), None)
