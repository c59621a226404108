"""A plan: the record of memory, collectives, promises and cost of one config on one topology."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp

from gpt_pjit.config import Config
from gpt_pjit.core.model import count_params, param_shapes
from gpt_pjit.core.parameters import matrix_rules
from gpt_pjit.core.sharding import BATCH_AXES, match_rules, paths_and_leaves, values
from gpt_pjit.core.training import Training
from gpt_pjit.pages import Record
from gpt_pjit.plan.collectives import LAYER_LOOP, Collective, collectives_of, whole_shapes
from gpt_pjit.plan.compile import (
    Executable,
    Topology,
    compile_cached,
    devices_of,
    lower,
    training_for,
)
from gpt_pjit.plan.cost import cost_record, explained, fits, memory_of, published_for, remedies
from gpt_pjit.plan.hlo import Module

XLA_DTYPES = {"bfloat16": "bf16", "float32": "f32", "float16": "f16"}
TOLERANCE = 0.02  # of memory and cycles, between two compiles of what counts as the same step
COUNTED = ("kind", "dtype", "axes", "where", "times", "bytes")  # what makes a collective the same
VIEWS = ("bitcast", "get-tuple-element", "parameter", "tuple", "while", "copy-done")


def make_plan(config: Config, topology: Topology, dollars: float | None = None) -> Record:
    """Compiles the step, or estimates it where no compiler is at hand; docs/plan.md lists the keys.

    `dollars` are per chip and hour. Raises ConfigError as `build_training` does, and where the
    compiler for TPUs is not installed.
    """
    devices = devices_of(topology)
    if devices is None:
        sent = sum(explained(config, topology.devices)["bytes_moved_a_step"].values())
        estimate = {"cost": cost_record(config, topology, None, sent, dollars)}
        return _frame(config, topology, None) | estimate
    training = training_for(config, devices)
    executable = compile_cached(lower(training), topology)
    return read_plan(config, topology, training, executable, dollars)


def read_plan(
    config: Config,
    topology: Topology,
    training: Training,
    executable: Executable,
    dollars: float | None = None,
) -> Record:
    """The plan of a compiled step; `training` says what was promised of it."""
    record = _frame(config, topology, executable)
    if executable.refusal:
        return record
    module, sizes = Module(executable.hlo), training.mesh.shape
    collectives = collectives_of(module, sizes, whole_shapes(training.model))
    breaches = broken_promises(config, training, module, collectives)
    sent = sum(c.total_bytes for c in collectives)
    return record | {
        "collectives": [c.record() for c in collectives],
        "promises": {name: not found for name, found in breaches.items()},
        "breaches": {name: found for name, found in breaches.items() if found},
        "cost": cost_record(config, topology, module, sent, dollars),
    }


def _frame(config: Config, topology: Topology, executable: Executable | None) -> Record:
    """The record without what only a compiled program tells."""
    memory = memory_of(config, topology, executable)
    length = config.data.sequence_length
    n_params = count_params(param_shapes(config.model, length))
    return {
        "topology": topology.name,
        "devices": topology.devices,
        "chips": topology.chips,
        "mesh": explained(config, topology.devices)["mesh"],
        "layout": config.partition.layout,
        "parameters": n_params,
        "compiled": executable is not None,
        "program": executable.program if executable else None,
        "compile_seconds": executable.seconds if executable else None,
        "fits": fits(memory),
        "remedies": [] if fits(memory) else remedies(config, topology),
        "memory": memory,
        "collectives": [],
        "promises": {},
        "breaches": {},
        "cost": None,
        "published": published_for(n_params, topology, length),
    }


def is_good(plan: Record) -> bool:
    """Whether it fits and keeps every promise."""
    return plan["fits"] and all(plan["promises"].values())


def essence(plan: Record) -> Record:
    """The part of a plan that the next one must match, numbers up to `TOLERANCE`."""
    names = (", ".join(f"{key} {c[key]}" for key in COUNTED) for c in plan["collectives"])
    return {
        **{name: plan[name] for name in ("layout", "mesh", "fits", "promises")},
        "memory": {name: plan["memory"][name] for name in ("state_bytes", "peak_bytes")},
        "mcycles": plan["cost"] and plan["cost"]["mcycles"],
        "collectives": dict(Counter(names)),
    }


@dataclass(frozen=True)
class Step:
    """What promises are checked against."""

    module: Module
    over_batch: Sequence[Collective]  # those over an axis that splits the batch
    matrices: Sequence[str]  # the paths that are gathered and reduced one by one
    logits: tuple[int, int]  # tokens of a microbatch and vocabulary, of one device
    compute_dtype: str  # as XLA writes it

    @property
    def reductions(self) -> list[Collective]:
        return [c for c in self.over_batch if c.is_reduction and c.parameters]

    @property
    def gathers(self) -> list[Collective]:
        return [c for c in self.over_batch if c.kind == "all-gather" and c.parameters]


def broken_promises(
    config: Config, training: Training, module: Module, collectives: Sequence[Collective]
) -> dict[str, list[str]]:
    """For each promise of the layout what breaks it: nothing where it is kept.

    Promises about collectives need a batch that is split over devices.
    """
    c, sizes = config.model, training.mesh.shape
    parts = sizes["replica"] * sizes["data"]
    rows = config.data.batch_size // config.optim.microbatches // parts
    matrices = values(match_rules(matrix_rules(c), training.state.params))
    step = Step(
        module=module,
        over_batch=[one for one in collectives if set(one.axes) & set(BATCH_AXES)],
        matrices=sorted(path for path, is_matrix in paths_and_leaves(matrices) if is_matrix),
        logits=(rows * config.data.sequence_length, c.vocab_size // sizes["tensor"]),
        compute_dtype=XLA_DTYPES[jnp.dtype(c.dtype).name],
    )
    names = PROMISES[config.partition.layout] if parts > 1 else ("one_float32_copy_of_the_logits",)
    return {name: list(CHECKS[name](step)) for name in names}


def _unless(collectives: Sequence[Collective], good: Callable[[Collective], bool]) -> Iterator[str]:
    return (str(c) for c in collectives if not good(c))


def _unless_once(
    step: Step, collectives: Sequence[Collective], dtype: str | None = None
) -> Iterator[str]:
    """Each matrix must be in exactly one, which runs once a step, and in the `dtype` if given."""
    yield from _unless(collectives, lambda c: dtype in (None, c.dtype))
    yield from (f"{c} runs {c.times} times a step" for c in collectives if c.times != 1)
    for path in step.matrices:
        holding = sum(path in c.parameters for c in collectives)
        if holding != 1:
            yield f"{path} is in {holding} collectives, not one"


def _unless_by_layer(step: Step) -> Iterator[str]:
    """Layers are gathered in the layer loop; what is used outside of it, once."""
    for c in step.gathers:
        is_layer = any(path.startswith("blocks/") for path in c.parameters)
        if c.dtype != step.compute_dtype or (is_layer and LAYER_LOOP not in c.loops):
            yield str(c)


def _copies_of_the_logits(step: Step) -> list[str]:
    tokens, vocabulary = step.logits
    stored = [
        f"{instruction.name} holds float32 {list(array.shape)}"
        for name, computation in step.module.computations.items()
        for instruction in computation.values()
        if "fused" not in name and instruction.opcode not in VIEWS
        for array in instruction.arrays
        if array.dtype == "f32" and array.shape[-1:] == (vocabulary,)
        if array.nbytes == 4 * tokens * vocabulary
    ]
    return stored if len(stored) > 1 else []


# What breaks a promise, for each; nothing where it is kept.
CHECKS: Mapping[str, Callable[[Step], Iterable[str]]] = {
    "no_collective_of_the_batch_in_a_loop": lambda s: _unless(s.over_batch, lambda c: not c.loops),
    "no_gradient_reduction_in_a_loop": lambda s: _unless(s.reductions, lambda c: not c.loops),
    "gradients_reduced_in_float32": lambda s: _unless(s.reductions, lambda c: c.dtype == "f32"),
    "gradients_reduced_once": lambda s: _unless_once(s, s.reductions),
    "weights_gathered_once_in_compute_dtype": lambda s: _unless_once(s, s.gathers, s.compute_dtype),
    "updated_parameters_gathered_once_in_float32": lambda s: _unless_once(s, s.gathers, "f32"),
    "weights_never_gathered": lambda s: map(str, s.gathers),
    "weights_gathered_layer_by_layer_in_compute_dtype": _unless_by_layer,
    "one_float32_copy_of_the_logits": _copies_of_the_logits,
}
REDUCED_ONCE = (
    "no_collective_of_the_batch_in_a_loop",
    "no_gradient_reduction_in_a_loop",
    "gradients_reduced_in_float32",
    "gradients_reduced_once",
    "one_float32_copy_of_the_logits",
)
PROMISES = {
    "ddp": (*REDUCED_ONCE, "weights_never_gathered"),
    "zero1": (*REDUCED_ONCE, "updated_parameters_gathered_once_in_float32"),
    "zero": (*REDUCED_ONCE, "weights_gathered_once_in_compute_dtype"),
    # Layers are reduced where they were gathered: in the loop, in the dtype of the gather.
    "fsdp": ("weights_gathered_layer_by_layer_in_compute_dtype", "one_float32_copy_of_the_logits"),
}
