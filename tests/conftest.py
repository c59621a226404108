"""Every test runs on 32 CPU devices, the shape of a v3-32, and without silent rank promotion."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax

jax.config.update("jax_num_cpu_devices", 32)
jax.config.update("jax_numpy_rank_promotion", "raise")
