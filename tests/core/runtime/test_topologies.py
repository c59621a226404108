"""Topologies of up to 256 hosts: every mesh is made, every row is read where it is held."""

import os

import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from gpt_pjit.core.runtime import local_rows
from gpt_pjit.core.sharding import BATCH_AXES, make_mesh
from gpt_pjit.plan.compile import FAMILIES, find_topology

pytest.importorskip("libtpu", reason="wants libtpu, of the extra `plan`")
pytestmark = pytest.mark.tpu_compiler

SIZES = {
    f"{name}-{size}": find_topology(f"{name}-{size}").devices
    for name, family in FAMILIES.items()
    for size in family.sizes
}
NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if devices > 32 else name
    for name, devices in SIZES.items()
    if devices <= 1024
]


def devices_of(name):
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    from jax.experimental import topologies

    topology = find_topology(name)
    description = topologies.get_topology_desc(
        platform="tpu", topology_name=topology.grid, **topology.options
    )
    return description.devices


def shapes_of(n_devices):
    sizes = [n for n in range(1, n_devices + 1) if n_devices % n == 0]
    for replica in sizes:
        for tensor in sizes:
            if n_devices % (replica * tensor) == 0:
                yield replica, n_devices // (replica * tensor), tensor


@pytest.mark.parametrize("name", NAMES)
def test_every_mesh_is_made_and_every_host_reads_what_its_devices_hold(name):
    devices = devices_of(name)
    hosts = {device.process_index for device in devices}
    for shape in shapes_of(len(devices)):
        mesh = make_mesh(shape, devices)
        assert set(mesh.devices.flat) == set(devices), shape
        batch = (2 * shape[0] * shape[1], 3)
        held = {host: set() for host in hosts}
        # The batch axes are the first two of the mesh: part i of the batch is on row i of devices.
        for part, row in enumerate(mesh.devices.reshape(shape[0] * shape[1], shape[2])):
            for device in row:
                held[device.process_index] |= {2 * part, 2 * part + 1}
        sharding = NamedSharding(mesh, P(BATCH_AXES, None))
        for host in (min(hosts), max(hosts)) if len(hosts) > 16 else hosts:
            read = local_rows(sharding, batch, host)
            np.testing.assert_array_equal(read, sorted(held[host]), err_msg=str(shape))
        assert set().union(*held.values()) == set(range(batch[0]))


@pytest.mark.parametrize("name", ["v4-32", "v5e-32", "v5p-32", "v6e-32"])
def test_the_rows_of_a_host_are_not_one_range(name):
    """Otherwise the test above shows nothing that a range would not do."""
    devices = devices_of(name)
    sharding = NamedSharding(make_mesh((1, len(devices), 1), devices), P(BATCH_AXES, None))
    rows = local_rows(sharding, (len(devices), 3), 0)
    assert rows.max() - rows.min() + 1 > len(rows)
