"""Steps compiled for GPUs that are not there, and the least time that their operations take."""

import dataclasses

import pytest

from gpt_pjit.config import replaced
from gpt_pjit.plan import gpus
from gpt_pjit.plan.bounds import gpu_bound
from gpt_pjit.plan.compile import find_topology
from gpt_pjit.plan.hlo import Module
from gpt_pjit.plan.plan import LOGITS, make_plan

TEXT = """HloModule step

%sliced (p.0: f32[12,64,32], p.1: s32[]) -> f32[64,32] {
  %p.0 = f32[12,64,32]{2,1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %part = f32[1,64,32]{2,1,0} dynamic-slice(%p.0, %p.1, %zero, %zero)
  %flat = f32[64,32]{1,0} bitcast(%part)
  ROOT %twice = f32[64,32]{1,0} add(%flat, %flat)
}

%written (p.2: f32[12,64,32], p.3: f32[64,32], p.4: s32[]) -> f32[12,64,32] {
  %p.2 = f32[12,64,32]{2,1,0} parameter(0)
  %p.3 = f32[64,32]{1,0} parameter(1)
  %p.4 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  %tall = f32[1,64,32]{2,1,0} bitcast(%p.3)
  ROOT %whole = f32[12,64,32]{2,1,0} dynamic-update-slice(%p.2, %tall, %p.4, %zero.1, %zero.1)
}

%product (p.5: bf16[8,64], p.6: bf16[64,32]) -> bf16[8,32] {
  %p.5 = bf16[8,64]{1,0} parameter(0)
  %p.6 = bf16[64,32]{1,0} parameter(1)
  ROOT %dot = bf16[8,32]{1,0} dot(%p.5, %p.6), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%outer (p.7: bf16[8,64], p.8: bf16[64,32]) -> bf16[8,32] {
  %p.7 = bf16[8,64]{1,0} parameter(0)
  %p.8 = bf16[64,32]{1,0} parameter(1)
  ROOT %inner = bf16[8,32]{1,0} fusion(%p.7, %p.8), kind=kCustom, calls=%product
}

ENTRY %main (a: f32[12,64,32], i: s32[], x: bf16[8,64], y: bf16[64,32]) -> bf16[8,32] {
  %a = f32[12,64,32]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %x = bf16[8,64]{1,0} parameter(2)
  %y = bf16[64,32]{1,0} parameter(3)
  %layer = f32[64,32]{1,0} fusion(%a, %i), kind=kLoop, calls=%sliced
  %stack = f32[12,64,32]{2,1,0} fusion(%a, %layer, %i), kind=kLoop, calls=%written
  %copy = f32[64,32]{1,0} copy(%layer)
  %fused = bf16[8,32]{1,0} fusion(%x, %y), kind=kCustom, calls=%outer
  %view = bf16[256]{0} bitcast(%fused)
  ROOT %library = (bf16[8,32]{1,0}, s8[64]{0}) custom-call(%x, %y), \
custom_call_target="__cublas$gemm", \
backend_config={"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}
}
"""
LAYER = 64 * 32 * 4
OPERANDS = 2 * (8 * 64 + 64 * 32)


@pytest.mark.parametrize(
    ("name", "nbytes", "flops"),
    [
        ("layer", 2 * LAYER + 4, 0),  # of twelve one is read, and written
        ("stack", 2 * LAYER + 4, 0),  # in place
        ("copy", 2 * LAYER, 0),
        ("fused", OPERANDS + 2 * 8 * 32, 2 * 8 * 32 * 64),
        ("library", OPERANDS + 2 * 8 * 32 + 64, 2 * 8 * 32 * 64),
        ("view", 0, 0),
    ],
)
def test_the_bound_is_that_of_products_or_of_bytes(name, nbytes, flops):
    module, chip = Module(TEXT), find_topology("h100-1").chip
    scope = module.computations[module.entry]

    def bound(**rates):
        return gpu_bound(module, scope[name], scope, dataclasses.replace(chip, **rates))

    assert bound(peak_flops=1e30, hbm_bandwidth=1.0) == nbytes
    assert bound(peak_flops=1.0, hbm_bandwidth=1e30) == pytest.approx(flops)


@pytest.mark.slow
@pytest.mark.skipif(not gpus.has_compiler(), reason="needs pip install 'gpt_pjit[plan-gpu]'")
@pytest.mark.parametrize(
    ("layout", "name"),
    [
        pytest.param("ddp", "a100-40gb-4", marks=pytest.mark.long),
        pytest.param("zero1", "h100-4", marks=pytest.mark.long),
        ("zero", "h100-16"),
        pytest.param("fsdp", "h200-4", marks=pytest.mark.long),
    ],
)
def test_a_step_is_compiled_for_gpus_that_are_not_there(small, layout, name):
    fields = {"partition.layout": layout, "model.dtype": "bfloat16", "data.batch_size": 32}
    plan = make_plan(replaced(small, fields), find_topology(name))
    assert plan["compiled"]
    # So small a model's logits are cheap to keep twice.
    assert plan["breaches"].keys() <= {LOGITS}, plan["breaches"]
    assert plan["memory"]["peak_bytes"] >= plan["memory"]["state_bytes"]
    assert 0 < plan["cost"]["mfu"] < 1
    assert plan["cost"]["scopes"].keys() >= {"mlp", "attention_scores", "optimizer"}
    assert plan["collectives"]
