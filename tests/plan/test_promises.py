"""Our step keeps the promises of its layout; one with automatic sharding breaks them by name."""

import pytest
from jax.sharding import PartitionSpec as P

from gpt_pjit.core.training import muon
from gpt_pjit.partition import DEAL, explain_config
from gpt_pjit.plan.compile import find_topology
from gpt_pjit.plan.plan import is_good, read_plan
from tests.helpers import with_fields
from tests.plan.conftest import LAYOUTS

# XLA for CPU stores the logits more than once; tests/plan/test_tpu.py holds that promise.
QUICK = ("zero", "data")
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


MUON = {"optim.rules": ((r"blocks/.*/kernel", "muon"), (".*", "adamw"))}
DEALT = "matrices_dealt_to_muon_and_back_once"


def marks_of(case):
    if case == QUICK:
        return []
    return [pytest.mark.slow] if "tensor" in case else [pytest.mark.slow, pytest.mark.long]


@pytest.mark.parametrize(
    ("layout", "mesh"),
    [
        pytest.param(layout, mesh, marks=marks_of((layout, mesh)))
        for layout in LAYOUTS
        for mesh in ("data", "replica", "tensor")
    ],
)
def test_muon_sends_what_the_partition_room_counts_and_breaks_nothing(
    small, plan_on_cpu, layout, mesh
):
    sizes = {} if mesh == "data" else {f"mesh.{mesh}": 2}
    config = with_fields(small, {"partition.layout": layout} | MUON | sizes)
    plan = plan_on_cpu(config).record
    assert broken(plan) == {}
    assert DEALT in plan["promises"]
    sent = [c for c in plan["collectives"] if "/muon/" in c["op_name"]]
    expected = explain_config(config, 4)["bytes_moved_a_step"][DEAL]
    assert sum(c["total_bytes"] for c in sent) == expected > 0
    gathered = {axis for c in sent if c["kind"] == "all-gather" for axis in c["axes"]}
    assert gathered == ({"data"} if layout == "ddp" else set()) | (
        {"replica"} if mesh == "replica" else set()
    )


def test_muon_on_whole_matrices_everywhere_breaks_its_promise(small, plan_on_cpu, monkeypatch):
    """As a partitioner does where one device's matrices are not dealt: all are gathered."""
    plain = muon.dealing

    def gathering(*arguments):
        deal = plain(*arguments)
        return deal._replace(specs=(deal.specs[0], P(*(None,) * len(deal.shape))))

    monkeypatch.setattr(muon, "dealing", gathering)
    plan = plan_on_cpu(with_fields(small, MUON | {"seed": 1})).record
    assert broken(plan).keys() == {DEALT}
    (words,) = plan["breaches"][DEALT]
    assert words.startswith("Muon sends")


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
