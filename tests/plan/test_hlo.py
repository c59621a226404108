"""Loops of known length, counted in compiled programs and in the ways in which XLA writes them."""

import re

import jax
import jax.numpy as jnp
import pytest

from gpt_pjit.plan.collectives import loop_label
from gpt_pjit.plan.compile import find_topology
from gpt_pjit.plan.cost import roll_up
from gpt_pjit.plan.hlo import Instruction, Loop, Module, direction_of

LOOP = """\
HloModule test, is_scheduled=true

%add_two (p0: s32[], p1: s32[]) -> s32[] {{
  %p0 = s32[] parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %sum = s32[] add(%p0, %p1)
}}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %state = (s32[]{{:T(256)}}, f32[8]{{0:T(8,128)(2,1)}}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[8] get-tuple-element(%state), index=1
  %step = s32[] constant({step})
  %next = s32[] {increment}
  %work = f32[8] multiply(%x, %x), backend_config={{"estimated_cycles":"{cycles}"}}
  ROOT %out = (s32[], f32[8]) tuple(%next, %work)
}}

%condition (state.1: (s32[], f32[8])) -> pred[] {{
  %state.1 = (s32[], f32[8]) parameter(0)
  %limit = s32[] constant({limit})
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%i.1, %limit), direction={direction}
}}

ENTRY %main (x.1: f32[8]) -> f32[8] {{
  %x.1 = f32[8] parameter(0)
  %start = s32[] constant({start})
  %copied = s32[] copy(%start)
  %tuple = (s32[], f32[8]) tuple(%copied, %x.1)
  %loop = (s32[], f32[8]) while(%tuple), condition=%condition, body=%body
  ROOT %result = f32[8] get-tuple-element(%loop), index=1
}}
"""
V5E = find_topology("v5e-4").chip
ADD = "add(%i, %step)"
FUSED = "fusion(%i, %step), kind=kLoop, calls=%add_two"


def loop(start=0, limit=10, step=1, direction="LT", increment=ADD, cycles=100):
    return Module(LOOP.format(**locals()))


def cycles_of(module):
    return sum(operation["cycles"] for operation in roll_up(module, V5E))


@pytest.mark.parametrize(
    ("module", "trips"),
    [
        (loop(), 10),
        (loop(step=2), 5),
        (loop(step=2, limit=9), 5),
        (loop(start=4), 6),
        (loop(direction="LE"), 11),
        (loop(increment=FUSED, step=2), 5),
        (loop(limit=0), 0),
    ],
)
def test_start_limit_and_step_are_read(module, trips):
    assert cycles_of(module) == trips * 100


def test_a_loop_that_cannot_be_counted_is_an_error():
    text = LOOP.format(start=0, limit=9, step=1, direction="LT", increment=ADD, cycles=1)
    with pytest.raises(ValueError, match="cannot count the trips of loop"):
        list(Module(text.replace("constant(9)", "get-tuple-element(%state.1), index=0")).walk())


def test_an_operation_without_an_estimate_is_not_counted_as_huge():
    module = loop(cycles=2**63 - 1)
    assert cycles_of(module) == 0
    assert any(visit.instruction.is_unestimated for visit in module.walk())


@pytest.mark.parametrize("strip", [False, True])
def test_nested_scans_as_xla_compiles_them(strip):
    """With the trip count that XLA for CPU states, and without, as XLA for TPU leaves it."""

    def scan(x, n, inside):
        return jax.lax.scan(lambda x, _: (inside(x), None), x, None, length=n)[0]

    x = jnp.ones((64, 64))
    text = jax.jit(lambda x: scan(x, 7, lambda x: scan(x, 3, lambda x: jnp.tanh(x @ x)))).lower(x)
    text = text.compile().as_text()
    if strip:
        text = re.sub(r'"known_trip_count":\{"n":"\d+"\},?', "", text)
        assert "known_trip_count" not in text
    times = {v.times for v in Module(text).walk() if v.instruction.opcode in ("dot", "custom-call")}
    assert times == {21}


@pytest.mark.parametrize(
    ("op_name", "scope", "direction"),
    [
        ("jit(train_step)/gather_weights/reshard", "gather_weights", "update"),
        ("jit(train_step)/a/jvp(layers)/while/body/mlp/dot_general", "mlp", "forward"),
        ("jit(f)/transpose(jvp(layers))/while/body/add", "layers", "backward"),
        ("jit(f)/layers/rematted_computation/norms/jit(mlp)/x", "norms", "recompute"),
        ("jit(f)/Block.mlp/attention_scores_of/add", "unscoped", "update"),
        ("jit(mlp)/add", "unscoped", "update"),
        ("", "unscoped", "update"),
    ],
)
def test_the_innermost_scope_counts(op_name, scope, direction):
    attributes = f'metadata={{op_name="{op_name}"}}'
    instruction = Instruction("x", "add", "f32[]", "", attributes, False)
    assert (instruction.scope, direction_of(op_name)) == (scope, direction)


@pytest.mark.parametrize(
    ("op_name", "label"),
    [
        ("jit(f)/accumulate_gradients/while", "microbatch loop"),
        ("jit(f)/accumulate_gradients/while/body/transpose(jvp(layers))/while", "layer loop"),
        ("jit(f)/accumulate_gradients/jit(_threefry)/while", "loop of 5"),
        ("jit(f)/layers/mlp/while", "loop of 5"),
        ("", "loop of 5"),
    ],
)
def test_a_loop_is_known_by_the_scope_around_it(op_name, label):
    attributes = f'metadata={{op_name="{op_name}"}}'
    assert loop_label(Loop(Instruction("x", "while", "()", "", attributes, False), 5)) == label


@pytest.mark.slow  # without XLA's fusion emitters a scatter is a loop too
def test_the_steps_own_loops(small, plan_on_cpu):
    visits = list(plan_on_cpu(small).module.walk())
    trips = {(loop_label(loop), loop.trips) for visit in visits for loop in visit.loops}
    assert trips == {("microbatch loop", 2), ("layer loop", 3)}
    assert max(visit.times for visit in visits) == 6
