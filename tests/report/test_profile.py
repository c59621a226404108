"""A real trace of the real step, read by the scopes of a plan."""

import os
import time
from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.plan.hlo import SCOPES, UNSCOPED, Module
from gpt_pjit.report.profile import MESSAGES, _programs, profiles, read_profile
from tests.helpers import program_on, random_tokens, tiny

STEPS = 3
MUON = (("blocks/.*/kernel", "muon"), (".*", "adamw"))
TIMED = ("copy", "custom-call", "dot", "fusion")  # what a CPU's trace holds


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """The record of a trace, the seconds that it lasted, and the text of its program."""
    workdir = tmp_path_factory.mktemp("run")
    # One device, which waits for no other, and products that take longer than the clock's grain.
    config = tiny(model={"d_model": 128, "d_ff": 512, "vocab_size": 1024})
    training = program_on(config, (1, 1, 1))
    with jax.set_mesh(training.mesh):
        state = training.init(jax.random.key(0))
        tokens = jax.device_put(random_tokens(config, 0), training.tokens.sharding)
        compiled = training.train_step.lower(state, tokens).compile()
        state, metrics = training.train_step(state, tokens)
        jax.block_until_ready(metrics)
        other = jax.jit(lambda tokens: jnp.sum(jnp.sin(tokens)))  # as validation is, no step
        jax.block_until_ready(other(tokens))
        # A step of the same process, whose instructions have the same names.
        another = program_on(tiny(optim={"rules": MUON}), (1, 1, 1))
        few = jax.device_put(random_tokens(tiny(), 0), another.tokens.sharding)
        jax.block_until_ready(another.train_step(another.init(jax.random.key(0)), few))
        jax.profiler.start_trace(workdir / "profile" / "100")
        jax.block_until_ready(other(tokens))
        start = time.perf_counter()
        for _ in range(STEPS):
            state, metrics = training.train_step(state, tokens)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - start
        jax.profiler.stop_trace()
    (path,) = profiles(workdir).values()
    return read_profile(path), seconds, compiled.as_text()


@pytest.mark.slow
def test_a_trace_is_told_by_the_scopes_of_the_plan(traced):
    record, _, text = traced
    assert (record["steps"], record["devices"]) == (STEPS, 1)
    assert set(record["scopes"]) <= {*SCOPES.split("|"), UNSCOPED}
    module, expected = Module(text), Counter()
    for visit in module.walk():
        if not visit.fused and visit.instruction.opcode in TIMED:
            expected[module.named(visit.instruction).scope] += visit.times
    counted: Counter[str] = Counter()
    for operation in record["operations"]:
        counted[operation["scope"]] += operation["times"]
    assert counted == expected
    assert expected.total() > 400 > 4 * expected[UNSCOPED]  # copies, and zeros to add to
    assert record["scopes"]["mlp"].keys() >= {"forward", "backward"}


@pytest.mark.slow
def test_its_times_add_up_and_fit_the_clock(traced):
    record, seconds, _ = traced
    by_scope = sum(sum(passes.values()) for passes in record["scopes"].values())
    of_operations = sum(operation["seconds"] for operation in record["operations"])
    assert by_scope == pytest.approx(record["seconds"])
    assert of_operations == pytest.approx(record["seconds"])
    # A device runs several instructions at the same time, but not on more threads than there are.
    assert 0.2 * seconds / STEPS < record["seconds"] < max(4, os.cpu_count()) * seconds / STEPS


def test_instructions_are_named_as_a_plan_names_them():
    """Of each of the step's programs; a fusion without a name by the last that it holds."""
    step = {"multiply": "", "dot.1": "layers/mlp/dot_general", "fusion.1": "", "add.2": ""}
    inside = {"p": "", "mul": "layers/norms/mul", "exp": "layers/attention_softmax/exp", "q": ""}
    other = {"fusion.1": "loss_head/other", "dot.1": "loss_head/other"}

    def program(name, *computations):
        """A map's entry, as a trace has it: the instructions of computations 1, 2, ..."""
        made = MESSAGES["profile.Program"]()
        for number, instructions in enumerate(computations, 1):
            one = made.module.computations.add(id=number)
            for instruction, op_name in instructions.items():
                opcode = instruction.partition(".")[0]
                added = one.instructions.add(name=instruction, opcode=opcode)
                added.metadata.op_name = op_name
                if opcode == "fusion" and len(computations) > 1:
                    added.called.append(2)
        event = MESSAGES["profile.Event"]()
        event.metadata.name = name
        event.metadata.stats.add(program=made.SerializeToString())
        return event

    space = MESSAGES["profile.Space"]()
    plane = space.planes.add(name="/host:metadata")
    programs = {"jit_train_step(1)": (step, inside), "jit_eval(2)": (other,)}
    programs["jit_train_step(3)"] = (other,)
    plane.events.extend(program(name, *made) for name, made in programs.items())
    found = _programs(space.SerializeToString())
    first, second = "jit_train_step(1)", "jit_train_step(3)"
    assert found[first, "dot.1"] == ("dot", "layers/mlp/dot_general")
    assert found[first, "fusion.1"] == ("fusion", "layers/attention_softmax/exp")
    assert found[first, "add.2"] == ("add", "")
    assert found[second, "fusion.1"] == ("fusion", "loss_head/other")
    assert {program for program, _ in found} == {first, second}


def test_what_is_no_trace_is_one_sentence(tmp_path):
    folder = tmp_path / "profile" / "7" / "plugins" / "profile" / "now"
    folder.mkdir(parents=True)
    (folder / "host.xplane.pb").write_bytes(b"\xff\x00 no trace")
    assert list(profiles(tmp_path)) == ["7"]
    with pytest.raises(ConfigError, match="is not a trace"):
        read_profile(profiles(tmp_path)["7"])
