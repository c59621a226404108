import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import pytest

from gpt_pjit.core.training import Training
from gpt_pjit.pages import Record
from gpt_pjit.plan.compile import Executable, compile_lowered, find_topology, lower, training_for
from gpt_pjit.plan.hlo import Module
from gpt_pjit.plan.plan import read_plan
from tests.helpers import run_command_here, tiny
from tests.plan.plain_step import plain_step

LAYOUTS = ("ddp", "zero1", "zero", "fsdp")


class Planned(NamedTuple):
    """A step compiled for CPU devices, and its plan."""

    program: Training
    executable: Executable
    record: Record

    @property
    def module(self) -> Module:
        return Module(self.executable.hlo)


@pytest.fixture(scope="session")
def small():
    """Three layers and two microbatches, so that trip counts tell the loops apart."""
    model = {"n_layers": 3, "remat": "full", "d_model": 32, "d_ff": 64}
    return tiny(model=model, optim={"microbatches": 2}, data={"batch_size": 16})


@pytest.fixture(scope="session")
def plan_on_cpu():
    """`plan_on_cpu(config, plain=False)`: the plan of 4 CPU devices, in place of 4 of a v5e."""
    topology = find_topology("v5e-4")
    made: dict[Any, Planned] = {}

    def plan(config, plain=False):
        if (config, plain) not in made:
            program = training_for(config, jax.devices()[:4])
            lowered = plain_step(config, program) if plain else lower(program)
            executable = dataclasses.replace(compile_lowered(lowered), seconds=1.0)
            record = read_plan(config, topology, program, executable)
            made[config, plain] = Planned(program, executable, record)
        return made[config, plain]

    return plan


@pytest.fixture
def run_plan(capsys):
    """`run_plan(*argv)`: exit code, standard output and standard error of the command."""
    return functools.partial(run_command_here, capsys, "plan")
