"""A plan: the record of memory, collectives, promises and cost of one config on one topology."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax.numpy as jnp

from gpt_pjit.config import Config
from gpt_pjit.core.model import count_params, param_shapes
from gpt_pjit.core.parameters import matrix_rules
from gpt_pjit.core.sharding import BATCH_AXES, match_rules, paths_and_leaves, values
from gpt_pjit.core.training import Training, chosen_optimizers
from gpt_pjit.pages import Record
from gpt_pjit.partition import DEAL
from gpt_pjit.plan.collectives import LAYER_LOOP, OUTSIDE, collectives_of, whole_shapes
from gpt_pjit.plan.compile import (
    Executable,
    Topology,
    compile_cached,
    devices_of,
    lower,
    training_for,
)
from gpt_pjit.plan.cost import cost_record, explained, fits, memory_of, published_for, remedies
from gpt_pjit.plan.hlo import Module, scope_of
from gpt_pjit.plan.timeline import Transfers, timed

XLA_DTYPES = {"bfloat16": "bf16", "float32": "f32", "float16": "f16"}
TOLERANCE = 0.02  # of memory and cycles, between two compiles of what counts as the same step
COUNTED = ("kind", "dtype", "axes", "where", "times", "bytes")  # what makes a collective the same
REDUCTIONS = ("all-reduce", "reduce-scatter")
VIEWS = ("bitcast", "get-tuple-element", "parameter", "tuple", "while", "copy-done")
LOGITS = "one_float32_copy_of_the_logits"
DEALT = "matrices_dealt_to_muon_and_back_once"  # of any layout, where a rule says muon
REDUCED_ONCE = (
    "no_collective_of_the_batch_in_a_loop",
    "no_gradient_reduction_in_a_loop",
    "gradients_reduced_in_float32",
    "gradients_reduced_once",
    LOGITS,
)
PROMISES = {
    "ddp": (*REDUCED_ONCE, "weights_never_gathered"),
    "zero1": (*REDUCED_ONCE, "updated_parameters_gathered_once_in_float32"),
    "zero": (*REDUCED_ONCE, "weights_gathered_once_in_compute_dtype"),
    # Layers are reduced where they were gathered: in the loop, in the dtype of the gather.
    "fsdp": ("weights_gathered_layer_by_layer_in_compute_dtype", LOGITS),
}


def make_plan(config: Config, topology: Topology, dollars: float | None = None) -> Record:
    """Compiles the step, or estimates it where no compiler is at hand.

    `dollars` are per chip and hour. Raises ConfigError as `build_training` does, and where the
    compiler for TPUs is not installed.
    """
    devices = devices_of(topology)
    if devices is None:
        return read_plan(config, topology, None, None, dollars)
    training = training_for(config, devices)
    return read_plan(config, topology, training, compile_cached(lower(training), topology), dollars)


def read_plan(
    config: Config,
    topology: Topology,
    training: Training | None,
    executable: Executable | None,
    dollars: float | None = None,
) -> Record:
    """The plan of a compiled step, or of none; docs/plan.md lists the keys.

    `training` says what was promised of the step.
    """
    memory, explanation = (
        memory_of(config, topology, executable),
        explained(config, topology.devices),
    )
    sent = sum(explanation["bytes_moved_a_step"].values()) / topology.chip.link_per_device
    collectives, transfers = list[Record](), Transfers(sent, sent, 0.0)
    breaches: dict[str, list[str]] = {}
    module = None
    if training and executable and not executable.refusal:
        module = Module(executable.hlo)
        collectives = collectives_of(module, training.mesh.shape, whole_shapes(training.model))
        breaches = broken_promises(config, training, module, collectives, topology.chip.is_gpu)
        transfers = timed(collectives, module, topology.chip)
    length = config.data.sequence_length
    n_params = count_params(param_shapes(config.model, length))
    cost = cost_record(config, topology, n_params, module, transfers, dollars)
    return {
        "topology": topology.name,
        "devices": topology.devices,
        "chips": topology.chips,
        "mesh": explanation["mesh"],
        "layout": config.partition.layout,
        "parameters": n_params,
        "compiled": executable is not None,
        "program": executable.program if executable else None,
        "compile_seconds": executable.seconds if executable else None,
        "fits": fits(memory),
        "remedies": [] if fits(memory) else remedies(config, topology),
        "memory": memory,
        "collectives": collectives,
        "promises": {name: not found for name, found in breaches.items()},
        "breaches": {name: found for name, found in breaches.items() if found},
        "cost": None if memory["refusal"] else cost,
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


def broken_promises(
    config: Config,
    training: Training,
    module: Module,
    collectives: Sequence[Record],
    on_gpus: bool,
) -> dict[str, list[str]]:
    """For each promise of the layout what breaks it: nothing where it is kept.

    Promises about collectives need a batch that is split over devices. GPUs also move matrices
    transposed, and several packed into one buffer, which has no name.
    """
    c, sizes = config.model, training.mesh.shape
    parts = sizes["replica"] * sizes["data"]
    rows = config.data.batch_size // config.optim.microbatches // parts
    logits = rows * config.data.sequence_length, c.vocab_size // sizes["tensor"]
    matches = values(match_rules(matrix_rules(c), training.state.params))
    whole = whole_shapes(training.model)
    matrices = {path: whole[path] for path, is_matrix in paths_and_leaves(matches) if is_matrix}
    dtype = XLA_DTYPES[jnp.dtype(c.dtype).name]
    chosen = chosen_optimizers(config, training.state.params)
    over_batch = [one for one in collectives if set(one["axes"]) & set(BATCH_AXES)]
    dealt = [one for one in collectives if scope_of(one["op_name"]) == "muon"]
    over_batch = [one for one in over_batch if one not in dealt]
    named = [one for one in over_batch if one["parameters"]]
    reductions = [one for one in over_batch if one["kind"] in REDUCTIONS]
    if not on_gpus:
        reductions = [one for one in reductions if one["parameters"]]
    gathers = [one for one in named if one["kind"] == "all-gather"]
    breaches: dict[str, Iterable[str]] = {
        "no_collective_of_the_batch_in_a_loop": _in_a_loop(over_batch),
        "no_gradient_reduction_in_a_loop": _in_a_loop(reductions),
        "gradients_reduced_in_float32": _not_in("f32", reductions),
        "gradients_reduced_once": _not_once(matrices, reductions, on_gpus),
        "weights_gathered_once_in_compute_dtype": (
            *_not_in(dtype, gathers),
            *_not_once(matrices, gathers, on_gpus),
        ),
        "updated_parameters_gathered_once_in_float32": (
            *_not_in("f32", gathers),
            *_not_once(matrices, gathers, on_gpus),
        ),
        "weights_never_gathered": map(_say, gathers),
        "weights_gathered_layer_by_layer_in_compute_dtype": (
            *_not_in(dtype, gathers),
            *_layers_outside_their_loop(gathers),
        ),
        DEALT: (*_in_a_loop(dealt), *_more_than_dealt(config, training.mesh.size, dealt)),
        LOGITS: _copies_of_the_logits(module, *logits),
    }
    names = PROMISES[config.partition.layout] if parts > 1 else (LOGITS,)
    names += (DEALT,) * any(name == "muon" for name, _ in chosen.values())
    return {name: list(breaches[name]) for name in names}


def _say(c: Record) -> str:
    of = ", ".join(c["parameters"]) or c["op_name"]
    return f"{c['kind']} {c['dtype']} of {of}: {c['where']}"


def _in_a_loop(collectives: Sequence[Record]) -> Iterator[str]:
    return (_say(c) for c in collectives if c["where"] != OUTSIDE)


def _not_in(dtype: str, collectives: Sequence[Record]) -> Iterator[str]:
    return (_say(c) for c in collectives if c["dtype"] != dtype)


def _not_once(
    matrices: Mapping[str, tuple[int, ...]], collectives: Sequence[Record], on_gpus: bool
) -> Iterator[str]:
    """Each matrix must be in exactly one, which runs once a step.

    Matrices of one shape, as an untied head and the embedding, are told apart by number alone; on
    GPUs also those whose dimensions have the same sizes in another order.
    """
    yield from (f"{_say(c)} runs {c['times']} times a step" for c in collectives if c["times"] != 1)
    form = sorted if on_gpus else list
    alike: defaultdict[tuple[int, ...], list[str]] = defaultdict(list)
    for path, shape in matrices.items():
        alike[tuple(form(shape))].append(path)
    packed = sum(math.prod(s) for c in collectives if not c["parameters"] for s in c["shapes"])
    for sizes, paths in alike.items():
        holding = [
            sum(tuple(form(shape)) == sizes for shape in c["shapes"])
            for c in collectives
            if set(paths) & set(c["parameters"])
        ]
        arrays, elements = sum(max(1, n) for n in holding), len(paths) * math.prod(sizes)
        if arrays == 0 and packed >= elements:
            packed -= elements
        elif arrays != len(paths):
            yield f"{', '.join(paths)}: {arrays} collectives, not {len(paths)}"


def _more_than_dealt(config: Config, devices: int, dealt: Sequence[Record]) -> Iterator[str]:
    """Muon sends what its all-to-alls and gathers take in the compute dtype, and no more."""
    sent = sum(c["total_bytes"] for c in dealt)
    expected = explained(config, devices)["bytes_moved_a_step"].get(DEAL, 0)
    if sent > (1 + TOLERANCE) * expected:
        yield f"Muon sends {sent:,} bytes, not {expected:,}"


def _layers_outside_their_loop(gathers: Sequence[Record]) -> Iterator[str]:
    """What is used outside of the layers is gathered once, there."""
    for c in gathers:
        is_layer = any(path.startswith("blocks/") for path in c["parameters"])
        if is_layer and LAYER_LOOP not in c["where"]:
            yield _say(c)


def _copies_of_the_logits(module: Module, tokens: int, vocabulary: int) -> list[str]:
    stored = [
        f"{visit.instruction.name} holds float32 {list(array.shape)}"
        for visit in module.walk()
        if not visit.fused and visit.instruction.opcode not in VIEWS
        for array in visit.instruction.arrays
        if array.dtype == "f32" and array.shape[-1:] == (vocabulary,)
        if array.nbytes == 4 * tokens * vocabulary
    ]
    return stored if len(stored) > 1 else []
