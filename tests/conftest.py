"""Every test runs on 32 CPU devices, the shape of a v3-32, and without silent rank promotion."""

import os
import signal
import tempfile
from importlib.metadata import version

os.environ["JAX_PLATFORMS"] = "cpu"
# Most programs here run for milliseconds after seconds of compiling, which LLVM's optimisation and
# XLA's fusion emitters more than double. With XLA_FLAGS= in the environment, as CI runs the slow
# tests, programs are compiled as anywhere else.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    # Another XLA ends the process at a flag that it does not know.
    + " --xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10."),
)

import jax

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it

jax.config.update("jax_num_cpu_devices", 32)
jax.config.update("jax_numpy_rank_promotion", "raise")

if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers inherit it, as all that tests start does
    _programs = tempfile.TemporaryDirectory(prefix="gpt_pjit-tests-")
    os.environ["XDG_CACHE_HOME"] = _programs.name

pytest_plugins = ["tests.object_stores", "tests.token_sets"]
