"""Published peak rates of chips, for model FLOPs utilisation."""

from __future__ import annotations

# Dense bfloat16 FLOP/s of one JAX device, by `device_kind`, from the vendors' data sheets.
PEAK_FLOPS = {
    "TPU v2": 22.5e12,  # a core; two to a chip
    "TPU v3": 61.5e12,  # a core; two to a chip
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}
