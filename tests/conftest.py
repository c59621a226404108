"""Every test runs on 32 CPU devices, the shape of a v3-32, and without silent rank promotion."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Most programs here run for milliseconds after seconds of compiling: the suite takes half as long
# without LLVM's optimisation. With XLA_FLAGS= in the environment it optimises as anywhere else.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax

jax.config.update("jax_num_cpu_devices", 32)
jax.config.update("jax_numpy_rank_promotion", "raise")

pytest_plugins = ["tests.object_stores", "tests.token_sets"]
