"""The 580M step as the TPU compiler builds it for the 32 cores of a v3-32, with no TPU at hand."""

import importlib.util

import pytest

from gpt_pjit.config import replaced
from gpt_pjit.core.chips import GIB
from gpt_pjit.core.sharding import paths_and_leaves
from gpt_pjit.plan.collectives import loop_label
from gpt_pjit.plan.compile import compile_lowered, devices_of, find_topology, lower, training_for
from gpt_pjit.plan.hlo import UNSCOPED
from gpt_pjit.plan.plan import REDUCTIONS, make_plan, read_plan
from tests.helpers import load_config
from tests.plan.conftest import Planned
from tests.plan.plain_step import plain_step

pytestmark = [
    pytest.mark.slow,
    pytest.mark.tpu_compiler,
    pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs the extra `plan`"),
]
V3_32 = find_topology("v3-32")


@pytest.fixture(scope="module", autouse=True)
def compiler(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("TPU_SKIP_MDS_QUERY", "1")
    patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def program():
    return training_for(load_config("580m"), devices_of(V3_32))


@pytest.fixture(scope="module")
def planned(program):
    executable = compile_lowered(lower(program))
    record = read_plan(load_config("580m"), V3_32, program, executable)
    return Planned(program, executable, record)


@pytest.fixture(scope="module")
def plan(planned):
    return planned.record


def matrices(program):
    leaves = dict(paths_and_leaves(program.state.params))
    return sorted(path for path in leaves if path.endswith(("kernel", "embedding")))


def test_state_and_peak_per_core(plan):
    memory = plan["memory"]
    assert memory["compiler"]["arguments"] <= 0.22 * GIB
    assert memory["state_bytes"] == pytest.approx(memory["compiler"]["arguments"], rel=0.01)
    assert memory["peak_bytes"] < 14.5 * GIB
    assert plan["fits"]


def test_every_promise_of_zero_is_kept(plan):
    assert plan["breaches"] == {}
    assert len(plan["promises"]) == 6


def test_no_collective_runs_in_a_loop(plan):
    assert {c["where"] for c in plan["collectives"]} == {"outside"}


def test_each_gradient_is_reduced_once_in_float32(planned):
    reductions = [c for c in planned.record["collectives"] if c["kind"] in REDUCTIONS]
    assert {c["dtype"] for c in reductions} == {"f32"}
    of_matrices = [c for c in reductions if len(c["shapes"]) == 1]
    assert sorted(p for c in of_matrices for p in c["parameters"]) == matrices(planned.program)
    assert len(reductions) == len(of_matrices) + 1  # vectors and scalars: one


def test_weights_are_gathered_once_in_bfloat16(planned):
    collectives = planned.record["collectives"]
    gathers = [c for c in collectives if c["kind"] == "all-gather"]
    assert {c["dtype"] for c in gathers} == {"bf16"}
    assert sorted(p for c in gathers for p in c["parameters"]) == matrices(planned.program)
    assert {c["kind"] for c in collectives} <= {"all-gather", *REDUCTIONS}


def test_loops_are_counted_and_known(planned):
    loops = {visit.loops for visit in planned.module.walk()}
    labels = {tuple((loop_label(loop), loop.trips) for loop in nest) for nest in loops}
    assert {(), (("layer loop", 18),)} <= labels


def test_scopes_add_up_to_every_estimate_of_the_program(planned, plan):
    """The sum over scopes, and the text summed without them: loops inside out."""
    module = planned.module

    def total(computation):
        cycles = 0
        for instruction in module.computations[computation].values():
            cycles += instruction.cycles
            if instruction.opcode == "while":
                body = instruction.find(r"body=%?([\w.\-]+)")
                cycles += module.trips(computation, instruction) * total(body)
        return cycles

    cost = plan["cost"]
    by_scope = sum(sum(by.values()) for by in cost["scopes"].values())
    assert by_scope == pytest.approx(cost["mcycles"], rel=1e-12)
    assert cost["mcycles"] == total(module.entry) / 1e6
    assert cost["mcycles"] <= 1721.33
    assert cost["step_seconds"] == pytest.approx(cost["compute_seconds"] + cost["exposed_seconds"])
    assert cost["exposed_seconds"] == cost["collective_seconds"]  # nothing overlaps on v3
    assert {o["name"] for o in cost["unestimated_operations"]} == {
        *("arithmetic of scalars", "dynamic-update-slice: dynamic_update_slice"),
        *("fusion: gather", "sort: scatter-add", "fusion: scatter-add"),  # of the embedding
    }


def test_almost_every_cycle_has_a_scope(plan):
    cost = plan["cost"]
    share = {scope: sum(by.values()) / cost["mcycles"] for scope, by in cost["scopes"].items()}
    assert share[UNSCOPED] < 0.01
    assert share["layers"] < 0.12
    for scope in ("mlp", "attention_scores", "attention_values", "norms", "loss_head"):
        assert share[scope] > 0.02, scope
    passes = {name for by in cost["scopes"].values() for name in by}
    assert passes == {"forward", "recompute", "backward", "update"}


def test_automatic_sharding_breaks_the_promises_by_name(program):
    executable = compile_lowered(plain_step(load_config("580m"), program))
    plan = read_plan(load_config("580m"), V3_32, program, executable)
    assert plan["promises"]["no_gradient_reduction_in_a_loop"] is False
    assert plan["promises"]["gradients_reduced_once"] is False
    assert plan["promises"]["gradients_reduced_in_float32"] is False


def test_too_big_a_model_ends_with_a_verdict():
    fields = {"n_layers": 28, "d_model": 4096, "d_ff": 16384, "n_heads": 32}
    config = replaced(load_config("580m"), {f"model.{n}": v for n, v in fields.items()})
    plan = make_plan(config, find_topology("v3-8"))
    assert not plan["fits"]
    assert "exceeds available HBM" in plan["memory"]["refusal"]
    assert plan["remedies"]
    assert plan["cost"] is None
