"""A plan: memory, collectives, promises and cost of one config on one topology."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax.numpy as jnp

from gpt_pjit.config import Config
from gpt_pjit.core.model import count_params, param_shapes
from gpt_pjit.core.sharding import AXES
from gpt_pjit.core.training import Program
from gpt_pjit.partition import COLLECTIVES
from gpt_pjit.plan.collectives import Collective, collectives_of, whole_shapes
from gpt_pjit.plan.compile import Executable, compile_cached, devices_of, lower, program_for
from gpt_pjit.plan.cost import Cost, cost_of, published_for
from gpt_pjit.plan.hlo import Module
from gpt_pjit.plan.memory import Memory, explained, memory_of, remedies
from gpt_pjit.plan.promises import Promise, Step, check
from gpt_pjit.plan.topology import Topology

XLA_DTYPES = {"bfloat16": "bf16", "float32": "f32", "float16": "f16"}


@dataclass(frozen=True)
class Plan:
    """`executable` is None where no compiler is at hand: then memory and cost are estimates."""

    config: Config
    topology: Topology
    axis_sizes: Mapping[str, int]
    n_params: int
    executable: Executable | None
    memory: Memory
    collectives: Sequence[Collective]
    promises: Sequence[Promise]
    cost: Cost | None  # None where the program does not compile for want of memory
    remedies: Sequence[str]
    published: Sequence[Mapping[str, Any]]

    @property
    def is_good(self) -> bool:
        return self.memory.fits and all(promise.kept for promise in self.promises)


def make_plan(config: Config, topology: Topology) -> Plan:
    """Raises ConfigError as `build` does, and where the compiler for the topology is missing."""
    devices = devices_of(topology)
    n_params = count_params(param_shapes(config.model, config.data.sequence_length))
    if devices is None:
        explanation = explained(config, topology.devices)
        sent = sum(explanation.moved_bytes(kind) for kind in COLLECTIVES)
        cost = cost_of(config, topology, n_params, None, sent)
        memory, sizes = memory_of(config, topology, None), explanation.axis_sizes
        return _assemble(config, topology, n_params, sizes, None, memory, (), (), cost)
    program = program_for(config, devices)
    executable = compile_cached(lower(program), topology)
    return read_plan(config, topology, program, executable)


def read_plan(config: Config, topology: Topology, program: Program, executable: Executable) -> Plan:
    """The plan of a step that was compiled; `program` says what was promised of it."""
    n_params = count_params(program.state.params)
    memory = memory_of(config, topology, executable)
    sizes = {axis: program.mesh.shape[axis] for axis in AXES}
    if executable.refusal:
        return _assemble(config, topology, n_params, sizes, executable, memory, (), (), None)
    module = Module(executable.hlo)
    shapes = whole_shapes(program)
    collectives = collectives_of(module, sizes, shapes)
    rows = config.data.batch_size // config.optim.microbatches
    parts = sizes["replica"] * sizes["data"]
    step = Step(
        module=module,
        collectives=collectives,
        matrices=frozenset(p for p in shapes if p.endswith(("kernel", "embedding"))),
        logits=(
            rows // parts * config.data.sequence_length,
            config.model.vocab_size // sizes["tensor"],
        ),
        compute_dtype=XLA_DTYPES[jnp.dtype(config.model.dtype).name],
    )
    promises = check(config.partition.layout, step, parts > 1)
    sent = sum(c.total_bytes for c in collectives)
    cost = cost_of(config, topology, n_params, module, sent)
    return _assemble(
        config, topology, n_params, sizes, executable, memory, collectives, promises, cost
    )


def _assemble(
    config: Config,
    topology: Topology,
    n_params: int,
    sizes: Mapping[str, int],
    executable: Executable | None,
    memory: Memory,
    collectives: Sequence[Collective],
    promises: Sequence[Promise],
    cost: Cost | None,
) -> Plan:
    return Plan(
        config=config,
        topology=topology,
        axis_sizes=sizes,
        n_params=n_params,
        executable=executable,
        memory=memory,
        collectives=collectives,
        promises=promises,
        cost=cost,
        remedies=() if memory.fits else remedies(config, topology),
        published=published_for(n_params, topology, config.data.sequence_length),
    )


def plan_record(plan: Plan, dollars_per_chip_hour: float | None = None) -> dict[str, Any]:
    """The value of --json; docs/plan.md lists its keys. Bytes are a device's, times a step's."""
    memory, cost = plan.memory, plan.cost
    return {
        "topology": plan.topology.name,
        "devices": plan.topology.devices,
        "mesh": dict(plan.axis_sizes),
        "layout": plan.config.partition.layout,
        "parameters": plan.n_params,
        "compiled": plan.executable is not None,
        "program": plan.executable.program if plan.executable else None,
        "fits": memory.fits,
        "remedies": list(plan.remedies),
        "memory": {
            "state_bytes": memory.state,
            "peak_bytes": memory.peak,
            "capacity_bytes": memory.capacity,
            "groups": memory.groups | {"activations and temporaries": memory.activations},
            "compiler": memory.compiler,
            "refusal": memory.refusal,
        },
        "collectives": [_collective_record(c) for c in plan.collectives],
        "promises": {promise.name: promise.kept for promise in plan.promises},
        "breaches": {p.name: list(p.breaches) for p in plan.promises if not p.kept},
        "cost": None if cost is None else _cost_record(cost, dollars_per_chip_hour),
        "published": list(plan.published),
        "compile_seconds": plan.executable.seconds if plan.executable else None,
    }


def _collective_record(c: Collective) -> dict[str, Any]:
    return {
        "kind": c.kind,
        "dtype": c.dtype,
        "shapes": [list(array.shape) for array in c.arrays],
        "axes": list(c.axes),
        "devices": c.group_size,
        "bytes": c.nbytes,
        "times": c.times,
        "total_bytes": c.total_bytes,
        "where": c.where,
        "parameters": list(c.parameters),
        "op_name": c.op_name,
        "source": c.source,
    }


def _cost_record(cost: Cost, dollars_per_chip_hour: float | None) -> dict[str, Any]:
    return {
        "mcycles": None if cost.cycles is None else cost.cycles / 1e6,
        "unestimated_operations": cost.unestimated,
        "compute_seconds": cost.compute_seconds,
        "collective_seconds": cost.collective_seconds,
        "step_seconds": cost.step_seconds,
        "tokens_per_second": cost.tokens_per_second,
        "mfu": cost.mfu,
        "days": cost.days,
        "dollars": dollars_per_chip_hour and cost.dollars(dollars_per_chip_hour),
        "scopes": {
            scope: {name: n / 1e6 for name, n in by.items()}
            for scope, by in cost.by_scope().items()
        },
        "operations": [
            asdict(o) | {"cycles": o.cycles / 1e6, "also": list(o.also)}
            for o in cost.operations[:20]
        ],
    }
