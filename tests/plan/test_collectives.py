"""What moves: groups in every notation, bytes against arrays that lie on devices, loops, names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from gpt_pjit.core.sharding import AXES
from gpt_pjit.partition import explain_config
from gpt_pjit.plan.collectives import _matching, collectives_of, replica_groups
from gpt_pjit.plan.hlo import Array, Module

PARAMETERS = {
    "embed/embedding": (50304, 1536),
    "blocks/mlp/up/kernel": (18, 1536, 6144),
    "blocks/mlp/down/kernel": (18, 6144, 1536),
    "blocks/attention/qkv/kernel": (18, 1536, 3, 12, 128),
    "norm_final/scale": (1536,),
}
SIZES = {"replica": 1, "data": 4, "tensor": 2}


@pytest.mark.parametrize(
    "text",
    [
        "replica_groups={{0,2,4,6},{1,3,5,7}}, use_global_device_ids=true",
        "replica_groups=[2,4]<=[4,2]T(1,0), use_global_device_ids=true",
        "replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=2] {'axis_0'}, use_global",
        "replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}, use_global",
    ],
)
def test_groups_in_every_notation(text):
    np.testing.assert_array_equal(replica_groups(text, 8), [[0, 2, 4, 6], [1, 3, 5, 7]])


def test_no_groups_are_all_devices():
    np.testing.assert_array_equal(replica_groups("replica_groups={}", 3), [[0, 1, 2]])


def compiled_on_8(function, x, spec, out_spec):
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(1, 4, 2), AXES, axis_types=(AxisType.Auto,) * 3)
    x = jax.device_put(x, NamedSharding(mesh, spec))
    jitted = jax.jit(function, out_shardings=NamedSharding(mesh, out_spec))
    return x, jitted(x), collectives_of(Module(jitted.lower(x).compile().as_text()), SIZES, {})


def bytes_on_a_device(array):
    return array.addressable_shards[0].data.nbytes


def test_a_gather_sends_what_the_placed_arrays_say():
    x, y, (gather,) = compiled_on_8(lambda x: x, jnp.ones((8, 6)), P("data"), P(None))
    assert [gather[key] for key in ("kind", "axes", "devices")] == ["all-gather", ["data"], 4]
    assert (gather["times"], gather["where"]) == (1, "outside")
    assert gather["bytes"] == bytes_on_a_device(y) - bytes_on_a_device(x)


def test_a_reduction_sends_twice_the_share_of_the_others():
    _, y, (reduction,) = compiled_on_8(lambda x: x.sum(0), jnp.ones((8, 6)), P("data"), P(None))
    assert reduction["kind"] == "all-reduce"
    assert reduction["bytes"] == 2 * bytes_on_a_device(y) * 3 // 4


def test_a_step_moves_what_the_partition_room_counts(small, plan_on_cpu):
    collectives = plan_on_cpu(small).record["collectives"]
    gathered = sum(c["total_bytes"] for c in collectives if c["kind"] == "all-gather")
    assert gathered == explain_config(small, 4)["bytes_moved_a_step"]["gather weights, once"]


def test_collectives_are_named_after_parameters(small, plan_on_cpu):
    collectives = plan_on_cpu(small).record["collectives"]
    gathers = [c for c in collectives if c["kind"] == "all-gather"]
    named = {path for c in gathers for path in c["parameters"]}
    assert {"embed/embedding", "blocks/mlp/up/kernel", "blocks/attention/qkv/kernel"} <= named
    assert all(c["source"] for c in gathers)


@pytest.mark.parametrize(
    ("shape", "path"),
    [
        ((50304, 1536), "embed/embedding"),
        ((512, 3, 50304), "embed/embedding"),
        ((18, 6144, 1536), "blocks/mlp/down/kernel"),
        ((1, 1536, 6144), "blocks/mlp/up/kernel"),
        ((1536, 4608), "blocks/attention/qkv/kernel"),
        ((1536,), "norm_final/scale"),
        ((4096, 1536), None),
        ((), None),
    ],
)
def test_shapes_are_those_of_parameters(shape, path):
    assert _matching([Array("f32", shape)], PARAMETERS) == ([path] if path else [])
