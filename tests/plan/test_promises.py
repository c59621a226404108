"""Our step keeps the promises of its layout; one with automatic sharding breaks them by name."""

import pytest

from gpt_pjit.plan.compile import find_topology
from gpt_pjit.plan.plan import is_good, read_plan
from tests.helpers import with_fields
from tests.plan.conftest import LAYOUTS

# XLA for CPU stores the logits more than once; tests/plan/test_tpu.py holds that promise.
NOT_ON_CPU = {"one_float32_copy_of_the_logits"}


def broken(plan):
    return {name: why for name, why in plan["breaches"].items() if name not in NOT_ON_CPU}


@pytest.mark.parametrize(
    "layout",
    [pytest.param(name, marks=[] if name == "zero" else pytest.mark.slow) for name in LAYOUTS],
)
def test_each_layout_keeps_its_promises(small, plan_on_cpu, layout):
    plan = plan_on_cpu(with_fields(small, {"partition.layout": layout})).record
    assert broken(plan) == {}
    assert plan["promises"]


def test_automatic_sharding_breaks_them_by_name(small, plan_on_cpu):
    plan = plan_on_cpu(small, plain=True).record
    assert plan["promises"]["no_gradient_reduction_in_a_loop"] is False
    assert plan["promises"]["gradients_reduced_once"] is False
    assert not is_good(plan)
    breaches = "\n".join(plan["breaches"]["no_gradient_reduction_in_a_loop"])
    assert "blocks/mlp/up/kernel" in breaches
    assert "loop of 3 in loop of 2" in breaches


def test_one_layouts_program_breaks_anothers_promises(small, plan_on_cpu):
    program, executable, _ = plan_on_cpu(small)
    other = with_fields(small, {"partition.layout": "ddp"})
    plan = read_plan(other, find_topology("v5e-4"), program, executable)
    assert broken(plan).keys() == {"weights_never_gathered"}
