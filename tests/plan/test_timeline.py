"""What has no cycles: kernels, transfers, the rest; by hand, and in a program for a real TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from gpt_pjit.plan.bounds import kernels_of, unestimated
from gpt_pjit.plan.collectives import collectives_of
from gpt_pjit.plan.compile import devices_of, find_topology
from gpt_pjit.plan.cost import roll_up
from gpt_pjit.plan.hlo import Module
from gpt_pjit.plan.timeline import timed

V5E = find_topology("v5e-4").chip  # 1.5 GHz, 200 GB/s of links, 819 GB/s of memory
SIZES = {"replica": 1, "data": 4, "tensor": 1}
COST = '"cost_estimate":{{"flops":"{flops}","transcendentals":"9","bytes_accessed":"{nbytes}"}}'
RING = "source_target_pairs={{0,1},{1,2},{2,3},{3,0}}"
# A permutation of 200 MB takes 1 ms, and 1.5 Mcycles are 1 ms.
PROGRAM = """\
HloModule test, is_scheduled=true

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %state = (s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %y = f32[8] get-tuple-element(%state), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %in_loop = f32[8] multiply(%y, %y), backend_config={{"estimated_cycles":"{looped}"}}
  ROOT %out = (s32[], f32[8]) tuple(%next, %in_loop)
}}

%condition (state.1: (s32[], f32[8])) -> pred[] {{
  %state.1 = (s32[], f32[8]) parameter(0)
  %limit = s32[] constant(3)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}}

ENTRY %main (x: f32[{n}], loop_state: (s32[], f32[8])) -> f32[8] {{
  %x = f32[{n}] parameter(0)
  %loop_state = (s32[], f32[8]) parameter(1)
  %zero = s32[] constant(0)
  %w = f32[8] get-tuple-element(%loop_state), index=1
  %tuple = (s32[], f32[8]) tuple(%zero, %w)
  %first = (f32[{n}], f32[{n}]) collective-permute-start(%x), channel_id=1, {ring}
  %second = (f32[{n}], f32[{n}]) collective-permute-start(%x), channel_id=2, {ring}
  %work = f32[8] multiply(%w, %w), backend_config={{"estimated_cycles":"{cycles}"}}
  %first_done = f32[{n}] collective-permute-done(%first)
  %loop = (s32[], f32[8]) while(%tuple), condition=%condition, body=%body
  %second_done = f32[{n}] collective-permute-done(%second)
  ROOT %third = f32[{n}] collective-permute(%second_done), channel_id=3, {ring}
}}
"""


def exposed(cycles=0, looped=0):
    """Milliseconds exposed of each of the three, in the order in which they start."""
    module = Module(PROGRAM.format(cycles=cycles, looped=looped, ring=RING, n=50_000_000))
    collectives = collectives_of(module, SIZES, {})
    transfers = timed(collectives, module, V5E)
    assert transfers.exposed == sum(c["exposed_seconds"] for c in collectives)
    assert transfers.collectives == pytest.approx(3e-3)
    return [round(1e3 * c["exposed_seconds"], 9) for c in collectives]


@pytest.mark.parametrize(
    ("cycles", "looped", "ms"),
    [
        (0, 0, [1, 1, 1]),
        (600_000, 0, [0.6, 1, 1]),  # work before the end of the first hides 0.4 ms of it
        (1_500_000, 0, [0, 1, 1]),  # the second waits for the links until the first has ended
        (2_250_000, 0, [0, 0.5, 1]),
        (0, 250_000, [1, 0.5, 1]),  # three turns of a loop hide 0.5 ms of the second
        (9_000_000, 0, [0, 0, 1]),  # the third is not asynchronous: nothing hides it
    ],
)
def test_work_between_start_and_end_hides_a_transfer(cycles, looped, ms):
    assert exposed(cycles, looped) == ms


KERNEL = (
    'metadata={{op_name="jit(f)/mlp/attend/pallas_call"}}, '
    'backend_config={{"custom_call_config":{{"body":"AA=="{cost}}}}}'
)
PROGRAM_WITH_KERNEL = """\
HloModule test, is_scheduled=true

%less (p0: s32[], p1: s32[]) -> pred[] {{
  %p0 = s32[] parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %lt = pred[] compare(%p0, %p1), direction=LT
}}

ENTRY %main (x: f32[1000,819], y: s32[4]) -> f32[1000,819] {{
  %x = f32[1000,819] parameter(0)
  %y = s32[4] parameter(1)
  %ready = s32[4] sort(%y), dimensions={{0}}, to_apply=%less, metadata={{op_name="jit(f)/sort"}}
  ROOT %k = f32[1000,819] custom-call(%x), custom_call_target="tpu_custom_call", {attributes}
}}
"""


@pytest.mark.parametrize(
    ("cost", "seconds"),
    [
        ("", 2 * 4 * 819_000 / 819e9),  # reads its operand and writes its result
        ("," + COST.format(flops=10, nbytes=819_000), 1e-6),
        ("," + COST.format(flops=197 * 10**8, nbytes=819_000), 1e-4),
    ],
)
def test_a_kernel_takes_at_least_its_bytes_and_its_flops(cost, seconds):
    module = Module(PROGRAM_WITH_KERNEL.format(attributes=KERNEL.format(cost=cost)))
    (kernel,) = kernels_of(module, V5E)
    assert (kernel["name"], kernel["times"]) == ("attend", 1)
    assert kernel["seconds"] == pytest.approx(seconds)
    (operation,) = roll_up(module, V5E)
    assert operation["scope"] == "mlp"
    assert operation["cycles"] == pytest.approx(seconds * 1.5e9)
    assert unestimated(module) == [{"name": "sort: sort", "times": 1}]


@pytest.fixture(scope="module")
def on_v5e():
    """A program of 4 chips with a kernel, gathers beside products, and a scatter."""
    pytest.importorskip("libtpu")
    patch = pytest.MonkeyPatch()
    patch.setenv("TPU_SKIP_MDS_QUERY", "1")
    patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    mesh = Mesh(np.array(devices_of(find_topology("v5e-4"))), ("data",))
    rows, width = 8192, 4096

    def double(x, out):
        out[...] = 2 * x[...]

    @jax.jit
    @jax.shard_map(
        mesh=mesh, in_specs=(P("data"), P(None, "data")), out_specs=P("data"), check_vma=False
    )
    def f(x, weights):
        for w in weights:
            x = jnp.tanh(x @ jax.lax.all_gather(w, "data", axis=0, tiled=True))
        block = pl.BlockSpec((256, width), lambda i: (i, 0))
        x = pl.pallas_call(
            double,
            grid=(rows // 256,),
            in_specs=[block],
            out_specs=block,
            out_shape=x,
            cost_estimate=pl.CostEstimate(flops=1, bytes_accessed=819 * 10**6, transcendentals=0),
            name="double",
        )(x)
        return x.at[jax.lax.iota(jnp.int32, 100) * 7].add(x[:100], unique_indices=False)

    def described(shape, spec):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))

    arguments = (
        described((4 * rows, width), P("data")),
        described((4, width, width), P(None, "data")),
    )
    yield Module(f.trace(*arguments).lower(lowering_platforms=("tpu",)).compile().as_text())
    patch.undo()


@pytest.mark.slow
@pytest.mark.tpu_compiler
def test_a_real_program_overlaps_gathers_and_lists_its_kernel(on_v5e):
    collectives = collectives_of(on_v5e, SIZES, {})
    timed(collectives, on_v5e, V5E)
    assert [(c["kind"], c["bytes"]) for c in collectives] == 4 * [("all-gather", 3 * 2**23)]
    first, *others = sorted(collectives, key=lambda c: -c["exposed_seconds"])
    assert first["exposed_seconds"] == pytest.approx(first["seconds"])  # before any product
    assert {c["exposed_seconds"] for c in others} == {0.0}
    (kernel,) = kernels_of(on_v5e, V5E)
    assert (kernel["name"], kernel["times"], kernel["basis"]) == ("double", 1, "its cost estimate")
    assert kernel["seconds"] == pytest.approx(1e-3)
    assert any("scatter" in o["name"] for o in unestimated(on_v5e))
