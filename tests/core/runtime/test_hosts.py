import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from gpt_pjit.core.runtime import global_array, local_rows
from gpt_pjit.core.runtime.hosts import cpu_devices
from gpt_pjit.core.sharding import BATCH_AXES, make_mesh
from tests.helpers import tiny


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
    config = tiny(mesh=mesh, data={"batch_size": batch}, optim={"microbatches": microbatches})
    assert cpu_devices(config, cores) == devices


def test_local_rows_and_global_array():
    mesh = make_mesh((2, 2, 2), jax.devices()[:8])
    sharding = NamedSharding(mesh, P(BATCH_AXES, None))
    np.testing.assert_array_equal(local_rows(sharding, (16, 3)), np.arange(16))
    rows = np.arange(48, dtype=np.int32).reshape(16, 3)
    np.testing.assert_array_equal(global_array(sharding, rows, 16), rows)
