"""A plan: the record of memory, collectives, promises and cost of one config on one topology."""

from __future__ import annotations

import jax.numpy as jnp

from gpt_pjit.config import Config
from gpt_pjit.core.model import count_params, param_shapes
from gpt_pjit.core.parameters import matrix_rules
from gpt_pjit.core.sharding import AXES, match_rules, paths_and_leaves, values
from gpt_pjit.core.training import Training
from gpt_pjit.pages import Record
from gpt_pjit.plan.collectives import Collective, collectives_of, whole_shapes
from gpt_pjit.plan.compile import Executable, compile_cached, devices_of, lower, training_for
from gpt_pjit.plan.cost import cost_record, published_for
from gpt_pjit.plan.hlo import Module
from gpt_pjit.plan.memory import explained, memory_of, remedies
from gpt_pjit.plan.promises import Step, check
from gpt_pjit.plan.topology import Topology

XLA_DTYPES = {"bfloat16": "bf16", "float32": "f32", "float16": "f16"}
TOLERANCE = 0.02  # of memory and cycles, between two compiles of what counts as the same step
COUNTED = ("kind", "dtype", "axes", "where", "times", "bytes")  # what makes a collective the same


def make_plan(config: Config, topology: Topology, dollars: float | None = None) -> Record:
    """Compiles the step, or estimates it where no compiler is at hand; docs/plan.md lists the keys.

    `dollars` are per chip and hour. Raises ConfigError as `build_training` does, and where the
    compiler for TPUs is not installed.
    """
    devices = devices_of(topology)
    if devices is not None:
        training = training_for(config, devices)
        executable = compile_cached(lower(training), topology)
        return read_plan(config, topology, training, executable, dollars)
    explanation = explained(config, topology.devices)
    sent = sum(explanation["bytes_moved_a_step"].values())
    n_params = count_params(param_shapes(config.model, config.data.sequence_length))
    record = _frame(config, topology, n_params, explanation["mesh"], None)
    return record | {"cost": cost_record(config, topology, n_params, None, sent, dollars)}


def read_plan(
    config: Config,
    topology: Topology,
    training: Training,
    executable: Executable,
    dollars: float | None = None,
) -> Record:
    """The plan of a compiled step; `training` says what was promised of it."""
    n_params = count_params(training.state.params)
    sizes = {axis: training.mesh.shape[axis] for axis in AXES}
    record = _frame(config, topology, n_params, sizes, executable)
    if executable.refusal:
        return record
    module = Module(executable.hlo)
    collectives = collectives_of(module, sizes, whole_shapes(training.model))
    breaches = _breaches(config, training, module, collectives)
    sent = sum(c.total_bytes for c in collectives)
    return record | {
        "collectives": [c.record() for c in collectives],
        "promises": {name: not found for name, found in breaches.items()},
        "breaches": {name: found for name, found in breaches.items() if found},
        "cost": cost_record(config, topology, n_params, module, sent, dollars),
    }


def is_good(plan: Record) -> bool:
    """Whether it fits and keeps every promise."""
    return plan["fits"] and all(plan["promises"].values())


def essence(plan: Record) -> Record:
    """The part of a plan that the next one must match, numbers up to `TOLERANCE`."""
    collectives: Record = {}
    for c in plan["collectives"]:
        name = ", ".join(f"{key} {c[key]}" for key in COUNTED)
        collectives[name] = collectives.get(name, 0) + 1
    return {
        "layout": plan["layout"],
        "mesh": plan["mesh"],
        "fits": plan["fits"],
        "memory": {name: plan["memory"][name] for name in ("state_bytes", "peak_bytes")},
        "mcycles": plan["cost"] and plan["cost"]["mcycles"],
        "promises": plan["promises"],
        "collectives": collectives,
    }


def _frame(
    config: Config,
    topology: Topology,
    n_params: int,
    sizes: dict[str, int],
    executable: Executable | None,
) -> Record:
    """The record without what only a compiled program tells."""
    memory = memory_of(config, topology, executable)
    return {
        "topology": topology.name,
        "devices": topology.devices,
        "chips": topology.chips,
        "mesh": dict(sizes),
        "layout": config.partition.layout,
        "parameters": n_params,
        "compiled": executable is not None,
        "program": executable.program if executable else None,
        "compile_seconds": executable.seconds if executable else None,
        "fits": memory.fits,
        "remedies": [] if memory.fits else remedies(config, topology),
        "memory": memory.record(),
        "collectives": [],
        "promises": {},
        "breaches": {},
        "cost": None,
        "published": published_for(n_params, topology, config.data.sequence_length),
    }


def _breaches(
    config: Config, training: Training, module: Module, collectives: list[Collective]
) -> dict[str, list[str]]:
    """What breaks each promise of the layout."""
    sizes = training.mesh.shape
    parts = sizes["replica"] * sizes["data"]
    rows = config.data.batch_size // config.optim.microbatches // parts
    matrices = values(match_rules(matrix_rules(config.model), training.state.params))
    step = Step(
        module=module,
        collectives=collectives,
        matrices=frozenset(path for path, is_matrix in paths_and_leaves(matrices) if is_matrix),
        logits=(
            rows * config.data.sequence_length,
            config.model.vocab_size // sizes["tensor"],
        ),
        compute_dtype=XLA_DTYPES[jnp.dtype(config.model.dtype).name],
    )
    return check(config.partition.layout, step, batch_is_split=parts > 1)
