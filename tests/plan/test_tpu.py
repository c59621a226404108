"""The 580M step as the TPU compiler builds it for the 32 cores of a v3-32, with no TPU at hand."""

import importlib.util

import pytest

from gpt_pjit.config import replaced
from gpt_pjit.core.chips import GIB
from gpt_pjit.core.sharding import paths_and_leaves
from gpt_pjit.plan.compile import compile_lowered, devices_of, lower, program_for
from gpt_pjit.plan.hlo import Module
from gpt_pjit.plan.plan import make_plan, plan_record, read_plan
from gpt_pjit.plan.topology import find_topology
from tests.helpers import load_config
from tests.plan.plain_step import plain_step

pytestmark = [
    pytest.mark.slow,
    pytest.mark.tpu_compiler,
    pytest.mark.xdist_group("tpu"),  # one compile for all of them
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
    return program_for(load_config("580m"), devices_of(V3_32))


@pytest.fixture(scope="module")
def plan(program):
    return read_plan(load_config("580m"), V3_32, program, compile_lowered(lower(program)))


def matrices(program):
    leaves = dict(paths_and_leaves(program.state.params))
    return sorted(path for path in leaves if path.endswith(("kernel", "embedding")))


def test_state_and_peak_per_core(plan):
    assert plan.memory.compiler["arguments"] <= 0.22 * GIB
    assert plan.memory.state == pytest.approx(plan.memory.compiler["arguments"], rel=0.01)
    assert plan.memory.peak < 14.5 * GIB
    assert plan.memory.fits


def test_every_promise_of_zero_is_kept(plan):
    assert {p.name: p.breaches for p in plan.promises if not p.kept} == {}
    assert len(plan.promises) == 6


def test_no_collective_runs_in_a_loop(plan):
    assert {c.where for c in plan.collectives} == {"outside"}


def test_each_gradient_is_reduced_once_in_float32(plan, program):
    reductions = [c for c in plan.collectives if c.is_reduction]
    assert {c.dtype for c in reductions} == {"f32"}
    of_matrices = [c for c in reductions if len(c.arrays) == 1]
    assert sorted(path for c in of_matrices for path in c.parameters) == matrices(program)
    assert len(reductions) == len(of_matrices) + 1  # vectors and scalars: one


def test_weights_are_gathered_once_in_bfloat16(plan, program):
    gathers = [c for c in plan.collectives if c.kind == "all-gather"]
    assert {c.dtype for c in gathers} == {"bf16"}
    assert sorted(path for c in gathers for path in c.parameters) == matrices(program)
    assert len(plan.collectives) == len(gathers) + sum(c.is_reduction for c in plan.collectives)


def test_loops_are_counted(plan):
    trips = {}
    for visit in Module(plan.executable.hlo).walk():
        labels = tuple(loop.trips for loop in visit.loops)
        trips.setdefault(labels, 0)
    assert {(), (18,)} <= set(trips)


def test_scopes_add_up_to_every_estimate_of_the_program(plan):
    """The sum over scopes, and the text summed without them: loops inside out."""
    module = Module(plan.executable.hlo)

    def total(computation):
        cycles = 0
        for instruction in module.computations[computation].values():
            cycles += instruction.cycles
            if instruction.opcode == "while":
                body = instruction.find(r"body=%?([\w.\-]+)")
                cycles += module.trips(computation, instruction) * total(body)
        return cycles

    by_scope = sum(by.total() for by in plan.cost.by_scope().values())
    assert by_scope == plan.cost.cycles == total(module.entry)
    assert plan.cost.unestimated == 0


def test_scopes_know_what_most_cycles_are_for(plan):
    scopes = {scope: by.total() for scope, by in plan.cost.by_scope().items()}
    assert scopes.get("other", 0) < 0.01 * plan.cost.cycles
    assert scopes.get("copies", 0) + scopes["layers, other"] < 0.12 * plan.cost.cycles
    for scope in ("MLP", "attention scores", "attention values", "norms", "loss head"):
        assert scopes[scope] > 0.02 * plan.cost.cycles
    passes = {name for by in plan.cost.by_scope().values() for name in by}
    assert passes == {"forward", "recompute", "backward", "update"}


def test_automatic_sharding_breaks_the_promises_by_name(program):
    executable = compile_lowered(plain_step(load_config("580m"), program))
    record = plan_record(read_plan(load_config("580m"), V3_32, program, executable))
    assert record["promises"]["no_gradient_reduction_in_a_loop"] is False
    assert record["promises"]["gradients_reduced_once"] is False
    assert record["promises"]["gradients_reduced_in_float32"] is False


def test_too_big_a_model_ends_with_a_verdict():
    fields = {"n_layers": 28, "d_model": 4096, "d_ff": 16384, "n_heads": 32}
    config = replaced(load_config("580m"), {f"model.{n}": v for n, v in fields.items()})
    plan = make_plan(config, find_topology("v3-8"))
    assert not plan.memory.fits
    assert "exceeds available HBM" in plan.memory.refusal
    assert plan.remedies
    assert plan_record(plan)["cost"] is None
