import dataclasses

import pytest

from gpt_pjit.plan.compile import compile_lowered, lower, program_for
from gpt_pjit.plan.plan import read_plan
from gpt_pjit.plan.topology import find_topology
from tests.helpers import tiny
from tests.plan.plain_step import plain_step

LAYOUTS = ("ddp", "zero1", "zero", "fsdp")


@pytest.fixture(scope="session")
def small():
    """Three layers and two microbatches, so that trip counts tell the loops apart."""
    model = {"n_layers": 3, "remat": "full", "d_model": 32, "d_ff": 64}
    return tiny(model=model, optim={"microbatches": 2}, data={"batch_size": 16})


@pytest.fixture(scope="session")
def plan_on_cpu():
    """`plan_on_cpu(config, plain=False)`: the plan of 4 CPU devices, in place of 4 of a v5e."""
    import jax

    topology = find_topology("v5e-4")
    made = {}

    def plan(config, plain=False):
        if (config, plain) not in made:
            program = program_for(config, jax.devices()[:4])
            lowered = plain_step(config, program) if plain else lower(program)
            executable = dataclasses.replace(compile_lowered(lowered), seconds=1.0)
            made[config, plain] = program, read_plan(config, topology, program, executable)
        return made[config, plain]

    return plan
