"""Devices, the rows of a batch that a process holds, and what the environment may not change."""

import sys

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from gpt_pjit.config import MeshConfig
from gpt_pjit.core.chips import GPU_SHARE
from gpt_pjit.core.errors import EXIT_CONFIG
from gpt_pjit.core.runtime import global_array, local_rows
from gpt_pjit.core.runtime.hosts import cpu_devices
from gpt_pjit.core.sharding import BATCH_AXES, make_mesh
from tests.processes import run


@pytest.mark.parametrize(
    ("mesh", "batch", "microbatches", "cores", "devices"),
    [
        ({}, 32, 1, 2, 2),
        ({}, 32, 1, 12, 8),  # 12 does not divide 32
        ({}, 12, 1, 8, 6),
        ({}, 32, 8, 64, 4),  # 4 rows a microbatch
        ({"tensor": 2}, 32, 1, 6, 4),
        ({"data": 2, "tensor": -1}, 32, 1, 7, 6),
        ({"data": 8}, 32, 1, 2, 8),  # as written, whatever the cores
        ({"tensor": 4}, 32, 1, 2, 4),
    ],
)
def test_cpu_devices(mesh, batch, microbatches, cores, devices):
    assert cpu_devices(MeshConfig(**mesh), batch // microbatches, cores) == devices


def test_local_rows_and_global_array():
    mesh = make_mesh((2, 2, 2), jax.devices()[:8])
    sharding = NamedSharding(mesh, P(BATCH_AXES, None))
    np.testing.assert_array_equal(local_rows(sharding, (16, 3)), np.arange(16))
    rows = np.arange(48, dtype=np.int32).reshape(16, 3)
    np.testing.assert_array_equal(global_array(sharding, rows, 16), rows)


REPORT = """
import os
from gpt_pjit.config import MeshConfig
from gpt_pjit.commandline import report_errors
with report_errors():
    from gpt_pjit.core.runtime import initialize_devices
    initialize_devices(MeshConfig(), 4)
    import jax
    from tests.helpers import program_on, tiny
    training = program_on(tiny(), (1, 1, 1))
    with jax.set_mesh(training.mesh):
        state = training.init(jax.random.key(0))
    print(sorted({str(leaf.dtype) for leaf in jax.tree.leaves(state)}))
    print(float(state.params["embed"]["embedding"][0, 0]))
    print(os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"])
"""


def started(**environment):
    return run([sys.executable, "-c", REPORT], **environment)


@pytest.fixture(scope="module")
def plain():
    return started()


def test_a_run_takes_the_share_of_a_gpu_that_a_plan_counts_with(plain):
    assert float(plain.stdout.split()[-1]) == GPU_SHARE


@pytest.mark.parametrize(
    "variable",
    [
        "JAX_ENABLE_X64=1",
        pytest.param("JAX_DEFAULT_PRNG_IMPL=rbg", marks=pytest.mark.slow),
        pytest.param("JAX_THREEFRY_PARTITIONABLE=0", marks=pytest.mark.slow),
        pytest.param("JAX_NUMPY_DTYPE_PROMOTION=strict", marks=pytest.mark.slow),
        pytest.param("JAX_DEFAULT_MATMUL_PRECISION=bfloat16", marks=pytest.mark.slow),
    ],
)
def test_a_shell_does_not_change_the_numbers(plain, variable):
    changed = started(**dict([variable.split("=")]))
    assert changed.stdout == plain.stdout, changed.stderr
    assert f"warning: {variable.split('=')[0]}=" in changed.stderr


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1"}, "so JAX_NUM_PROCESSES must be a number"),
        ({"JAX_PLATFORMS": "cuda"}, "cuda"),
    ],
)
def test_a_wrong_environment_is_one_sentence(environment, words):
    result = started(**environment)
    assert result.returncode == EXIT_CONFIG
    assert words in result.stderr
    assert "Traceback" not in result.stderr
