"""The attention kernel as the TPU compiler builds it, with every mask, on split heads and rows."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from gpt_pjit.config import ModelConfig
from gpt_pjit.core.model import Heads, attend_causally, token_positions
from gpt_pjit.core.model.kernel import room_for_angles
from gpt_pjit.core.sharding import make_mesh
from gpt_pjit.plan.compile import devices_of, find_topology
from gpt_pjit.plan.hlo import Module
from tests.helpers import norms_and_rotation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.tpu_compiler,
    pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs the extra `plan`"),
]
HEADS, GROUPS, ROWS, LENGTH = 8, 2, 4, 512
CONFIG = ModelConfig(positions="alibi", dropout_attention=0.1)


@pytest.fixture(autouse=True)
def no_tpu_here(monkeypatch):
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


def compiled(topology, size, dtype, prepared=False):
    devices = devices_of(find_topology(topology))[:4]
    mesh = make_mesh((1, 2, 2) if len(devices) == 4 else (1, 1, 2), devices)

    def shaped(shape, dtype, *spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))

    def both_ways(q, k, v, dvalues, documents, key):
        def attend(q, k, v):
            wrapped = jax.random.wrap_key_data(key)
            heads = (
                Heads(q, k, v, *norms_and_rotation(size, token_positions(documents, documents)))
                if prepared
                else Heads(q, k, v)
            )
            return attend_causally(CONFIG, 300, documents, heads, wrapped)

        values, pull = jax.vjp(attend, q, k, v)
        return values, pull(dvalues)

    heads = ("tensor", "data", None, None)
    q = shaped((HEADS, ROWS, LENGTH, size), dtype, *heads)
    k = shaped((GROUPS, ROWS, LENGTH, size), dtype, *heads)
    documents, key = shaped((ROWS, LENGTH), jnp.int32, "data"), shaped((2,), jnp.uint32)
    with jax.set_mesh(mesh):
        traced = jax.jit(both_ways).trace(q, k, k, q, documents, key)
        return Module(traced.lower(lowering_platforms=("tpu",)).compile().as_text())


def kernels(module):
    calls = (visit.instruction for visit in module.walk())
    return [i for i in calls if i.find(r'custom_call_target="([^"]*)"') == "tpu_custom_call"]


@pytest.mark.parametrize("topology", ["v4-8", "v5e-4", "v5p-8", "v6e-4"])
@pytest.mark.parametrize("size", [pytest.param(64, marks=pytest.mark.long), 128])
def test_newer_tpus_run_a_kernel_each_way_on_their_own_heads_and_rows(topology, size):
    module = compiled(topology, size, jnp.bfloat16)
    assert len(kernels(module)) == 2
    opcodes = {visit.instruction.opcode for visit in module.walk()}
    assert not {"all-gather", "all-reduce", "all-to-all", "collective-permute"} & opcodes


@pytest.mark.parametrize("topology", ["v4-8", "v6e-4"])
def test_the_kernel_norms_and_rotates(topology):
    module = compiled(topology, 128, jnp.bfloat16, prepared=True)
    assert len(kernels(module)) == 2
    outside = {visit.instruction.op_name for visit in module.walk()}
    assert not any("norms" in name or "rotary/HBTK" in name for name in outside)


def test_where_angles_leave_no_room_for_keys_the_kernel_takes_heads_ready():
    def fits(topology, length):
        with jax.set_mesh(make_mesh((1, 1, 1), devices_of(find_topology(topology))[:1])):
            return room_for_angles(jax.ShapeDtypeStruct((1, 1, length, 128), jnp.bfloat16))

    assert fits("v4-8", 1024)
    assert fits("v5e-4", 16384)
    assert not fits("v4-8", 2048)


@pytest.mark.parametrize(("topology", "dtype"), [("v3-8", jnp.bfloat16), ("v5e-4", jnp.float32)])
def test_elsewhere_the_plain_form_runs(topology, dtype):
    assert not kernels(compiled(topology, 128, dtype))
