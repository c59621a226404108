"""What a step takes: bytes of a device, cycles multiplied through loops, and the times of both."""

from __future__ import annotations

import functools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable

import jax.numpy as jnp

from gpt_pjit.config import Config, flatten, replaced
from gpt_pjit.core.chips import Chip
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.model import QUERY_BLOCK
from gpt_pjit.core.parameters import flops_per_token
from gpt_pjit.pages import Record
from gpt_pjit.partition import explain_config
from gpt_pjit.plan.bounds import cycles_of, kernels_of, unestimated
from gpt_pjit.plan.compile import Executable, Topology, larger
from gpt_pjit.plan.hlo import UNSCOPED, Module, direction_of
from gpt_pjit.plan.timeline import Transfers

HEADROOM = 0.8  # of the memory, since the estimate is up to a fifth too low
TOP_OPERATIONS = 20
# (model, parameters, topology, tokens/s, source): sequences of 1,024 tokens, as published.
PUBLISHED = (
    ("the 580M run that this reproduces", 580e6, "v3-32", 147e3, "its log: 97k steps in 4 days"),
    ("its 760M successor", 760e6, "v3-32", 131e3, "its log: 41B tokens in 87 hours"),
    ("llm.c, GPT-2 774M", 774e6, "a100-8", 309e3, "scripts/run_gpt2_774M.sh"),
    ("llm.c, GPT-2 1.6B", 1558e6, "h100-8", 374e3, "scripts/run_gpt2_1558M.sh"),
    ("llm-foundry, MPT 760M", 760e6, "h100-8", 629e3, "its benchmark table"),
    ("llm-foundry, MPT 1.3B", 1.3e9, "h100-8", 391e3, "its benchmark table"),
)


@functools.cache
def explained(config: Config, devices: int) -> Record:
    """`explain_config`, kept: remedies and searches ask for the same ones again and again."""
    return explain_config(config, devices)


def memory_of(config: Config, topology: Topology, executable: Executable | None) -> Record:
    """Bytes of a device: those of the trees are exact, the peak is the compiler's figure.

    The peak is an estimate where there is no compiler, or where it refused the program.
    """
    groups = tree_groups(config, topology.devices)
    trees = sum(groups.values())
    compiler = executable.memory if executable else {}
    estimate = trees + estimate_activations(config, topology.devices)
    peak = compiler.get("peak", estimate)
    return {
        "state_bytes": groups["master weights"] + groups["optimizer"],
        "peak_bytes": peak,
        "capacity_bytes": topology.chip.usable_bytes,
        # The groups are not all alive at the peak, and can sum to more.
        "groups": groups | {"activations and temporaries": max(0, peak - trees)},
        "compiler": compiler,
        "refusal": executable.refusal if executable else "",
    }


def fits(memory: Record, headroom: float = 1.0) -> bool:
    capacity: int = memory["capacity_bytes"]
    return not memory["refusal"] and memory["peak_bytes"] <= headroom * capacity


def tree_groups(config: Config, devices: int) -> dict[str, int]:
    explanation = explained(config, devices)
    held = explanation["bytes_a_device"]
    # Accumulated gradients lie as their weights do, in float32.
    dtype = jnp.dtype(jnp.float32 if config.optim.microbatches > 1 else config.model.dtype)
    shapes = [p["trees"]["compute"]["shape"] for p in explanation["parameters"].values()]
    return {
        "master weights": held["stored"],
        "optimizer": held["optimizer"],
        "gathered weights": held["compute"],
        "gradients": sum(map(math.prod, shapes)) * dtype.itemsize,
    }


def estimate_activations(config: Config, devices: int) -> int:
    """From shapes alone; docs/plan.md has the formula."""
    c, item = config.model, jnp.dtype(config.model.dtype).itemsize
    sizes = explained(config, devices)["mesh"]
    rows = config.data.batch_size // config.optim.microbatches
    tokens = rows // (sizes["replica"] * sizes["data"]) * config.data.sequence_length
    tensor = sizes["tensor"]
    block_input = tokens * c.d_model * item
    # The inputs and outputs of `attend`, and a byte per element of each dropout.
    length = config.data.sequence_length
    keys = (length + min(QUERY_BLOCK, length)) // 2  # a block of queries reads, on average
    masks = tokens * keys * c.n_heads // tensor * (c.dropout_attention > 0)
    masks += 2 * tokens * c.d_model * (c.dropout_residual > 0)
    # Heads of keys and values that `tensor` does not divide are copied until it does.
    heads = (c.n_heads + math.lcm(c.sizes["G"], tensor)) * c.sizes["K"] // tensor
    attention = tokens * (c.d_model + 2 * heads) * item + masks
    hidden = (4 if c.activation == "swiglu" else 2) * c.d_ff // tensor + heads * c.qk_norm
    inside = attention + tokens * (6 * c.d_model + hidden) * item
    scores = tokens * min(QUERY_BLOCK, length) * c.n_heads // tensor * (8 + item)
    logits = tokens * c.vocab_size // tensor * (4 + item)
    kept = {"full": 0, "selective": attention, "none": inside}[c.remat]
    return c.n_layers * (block_input + kept) + max(logits, inside + scores)


def remedies(config: Config, topology: Topology) -> list[str]:
    """Overrides that are estimated to fit, the least change first, or more of the same chips."""
    layouts = dict.fromkeys((config.partition.layout, "zero", "fsdp"))
    fitting = (_fitting(config, topology, layout) for layout in layouts)
    if found := [" ".join(changed) for changed in fitting if changed]:
        return found
    for other in larger(topology):
        # More devices need a batch that divides over them.
        batch = math.lcm(config.data.batch_size, other.devices)
        wider = replaced(config, {"data.batch_size": batch})
        grown = [f"--config.data.batch_size={batch}"] if wider != config else []
        for layout in layouts:
            if (changed := _fitting(wider, other, layout)) is not None:
                return [" ".join((f"--topology={other.name}", *grown, *changed))]
    return ["a smaller model, or chips with more memory"]


def _fitting(config: Config, topology: Topology, layout: str) -> list[str] | None:
    """The first overrides that fit in this layout: more microbatches, then full recomputation."""
    most = config.data.batch_size
    for remat in dict.fromkeys((config.model.remat, "full")):
        for n in (n for n in range(config.optim.microbatches, most + 1) if most % n == 0):
            fields = {"partition.layout": layout, "model.remat": remat, "optim.microbatches": n}
            try:
                memory = memory_of(replaced(config, fields), topology, None)
            except ConfigError:  # this batch, mesh or table does not work there
                break
            if fits(memory, HEADROOM):
                return overrides(config, fields)
    return None


def overrides(config: Config, fields: dict[str, object]) -> list[str]:
    """The flags that set these fields, where they differ from those of the config."""
    now = flatten(config)
    return [f"--config.{name}={value}" for name, value in fields.items() if value != now[name]]


def cost_record(
    config: Config,
    topology: Topology,
    n_params: int,
    module: Module | None,
    transfers: Transfers,
    dollars_per_chip_hour: float | None,
) -> Record:
    """Times and cost of a step.

    Without a `module` times are those at the chip's peak. On GPUs `mcycles` are bounds, no counts.
    """
    c, chip, length = config.model, topology.chip, config.data.sequence_length
    per_token = flops_per_token(c, n_params, length)
    tokens = config.data.batch_size * length
    peak = topology.devices * chip.peak_flops
    operations = roll_up(module, chip) if module else []
    cycles = sum(operation["cycles"] for operation in operations)
    if operations:
        compute = cycles / chip.clock
    else:  # no run is faster than the peak; recomputing whole blocks adds a third
        compute = tokens * per_token * (4 / 3 if c.remat == "full" else 1) / peak
    step = compute + transfers.exposed + transfers.copies
    days = config.optim.steps * step / 86400
    return {
        "mcycles": cycles / 1e6 if operations else None,
        "kernels": kernels_of(module, chip) if module else [],
        "unestimated_operations": unestimated(module)
        if module and operations and not chip.is_gpu
        else [],
        "compute_seconds": compute,
        "collective_seconds": transfers.collectives,
        "exposed_seconds": transfers.exposed,
        "copy_seconds": transfers.copies,
        "step_seconds": step,
        "tokens_per_second": tokens / step,
        "mfu": tokens / step * per_token / peak,
        "steps": config.optim.steps,
        "days": days,
        "dollars": dollars_per_chip_hour and days * 24 * topology.chips * dollars_per_chip_hour,
        "scopes": by_scope(operations),
        "operations": [
            o | {"cycles": o["cycles"] / 1e6, "also": list(o["also"])}
            for o in operations[:TOP_OPERATIONS]
        ],
    }


def roll_up(module: Module, chip: Chip) -> list[Record]:
    """Operations with an estimate, or kernels with a bound, summed where they are alike.

    The most cycles of a step come first.
    """
    cycles: defaultdict[tuple[str, str, str, str, tuple[str, ...]], float] = defaultdict(float)
    times: Counter[tuple[str, str, str, str, tuple[str, ...]]] = Counter()
    for visit in module.walk():
        instruction = visit.instruction
        each = cycles_of(module, instruction, module.computations[visit.computation], chip)
        if visit.fused or not each:
            continue
        fused = module.inside(instruction) if instruction.opcode == "fusion" else []
        named = module.named(instruction)
        # Other scopes that the fusion holds.
        also = sorted({i.scope for i in fused} - {UNSCOPED, "layers", named.scope})
        name = named.op_name.rsplit("/", 2)[-1] or instruction.opcode
        direction, source = direction_of(named.op_name), module.source(named)
        alike = (named.scope, direction, name, source, tuple(also))
        cycles[alike] += each * visit.times
        times[alike] += visit.times
    names = ("scope", "direction", "name", "source", "also", "cycles", "times")
    return [
        dict(zip(names, (*alike, n, times[alike]), strict=True))
        for alike, n in sorted(cycles.items(), key=lambda item: -item[1])
    ]


def by_scope(operations: Iterable[Record]) -> dict[str, dict[str, float]]:
    """Mcycles by scope and direction, the largest scope first."""
    table: dict[str, Counter[str]] = {}
    for o in operations:
        table.setdefault(o["scope"], Counter())[o["direction"]] += o["cycles"]
    ranked = sorted(table.items(), key=lambda item: -item[1].total())
    return {scope: {name: n / 1e6 for name, n in by.items()} for scope, by in ranked}


def published_for(n_params: int, topology: Topology, length: int) -> list[Record]:
    """Published speeds of models within a tenth of this size, at this length, on this hardware."""
    return [
        {"model": model, "tokens_per_second": rate, "source": source}
        for model, size, name, rate, source in PUBLISHED
        if name == topology.name and length == 1024 and abs(size / n_params - 1) < 0.1
    ]
