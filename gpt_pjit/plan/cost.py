"""The compiler's estimated cycles, multiplied through loops, and the times that follow."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from gpt_pjit.config import Config
from gpt_pjit.core.chips import flops_per_token
from gpt_pjit.pages import Record
from gpt_pjit.plan.hlo import UNSCOPED, Instruction, Module, Visit
from gpt_pjit.plan.topology import Topology

# The pass of an operation, by what JAX's transformations leave in its name; first match wins.
PASSES = (("recompute", "rematted_computation"), ("backward", r"transpose\("), ("forward", r"jvp"))
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


@dataclass(frozen=True)
class Operation:
    """Operations of the program that are alike in all but their cycles, summed over a step."""

    scope: str
    direction: str  # forward, recompute, backward or update
    name: str
    source: str  # a line of ours
    also: tuple[str, ...]  # other scopes that its fusion holds
    cycles: int = 0
    times: int = 0


def cost_record(
    config: Config,
    topology: Topology,
    n_params: int,
    module: Module | None,
    sent_bytes: int,
    dollars_per_chip_hour: float | None = None,
) -> Record:
    """Times and cost of a step in which a device sends `sent_bytes`.

    Without a `module`, or where no compiler counts cycles, times are those at the chip's peak.
    """
    c, chip = config.model, topology.chip
    per_token = flops_per_token(n_params, c.n_layers, c.d_model, config.data.sequence_length)
    tokens = config.data.batch_size * config.data.sequence_length
    peak = topology.devices * chip.peak_flops
    operations = roll_up(module) if module and chip.clock else []
    cycles = sum(operation.cycles for operation in operations)
    if operations and chip.clock:
        compute = cycles / chip.clock
    else:  # no run is faster than the peak; recomputing whole blocks adds a third
        compute = tokens * per_token * (4 / 3 if c.remat == "full" else 1) / peak
    collective = sent_bytes / chip.link_per_device
    step = compute + collective
    days = config.optim.steps * step / 86400
    dollars = dollars_per_chip_hour and days * 24 * topology.chips * dollars_per_chip_hour
    return {
        "mcycles": cycles / 1e6 if operations else None,
        "unestimated_operations": unestimated(module) if module else 0,
        "compute_seconds": compute,
        "collective_seconds": collective,
        "step_seconds": step,
        "tokens_per_second": tokens / step,
        "mfu": tokens / step * per_token / peak,
        "steps": config.optim.steps,
        "days": days,
        "dollars": dollars,
        "scopes": by_scope(operations),
        "operations": [
            asdict(o) | {"cycles": o.cycles / 1e6, "also": list(o.also)}
            for o in operations[:TOP_OPERATIONS]
        ],
    }


def roll_up(module: Module) -> list[Operation]:
    """Every operation with an estimate, its cycles times its executions a step, largest first."""
    cycles: Counter[Operation] = Counter()
    times: Counter[Operation] = Counter()
    for visit in module.walk():
        if visit.fused or not visit.instruction.cycles:
            continue
        named = _named(module, visit.instruction)
        alike = Operation(
            scope=named.scope,
            direction=direction_of(named.op_name),
            name=named.op_name.rsplit("/", 2)[-1] or visit.instruction.opcode,
            source=module.source(named),
            also=tuple(sorted(_scopes_inside(module, visit) - {named.scope})),
        )
        cycles[alike] += visit.instruction.cycles * visit.times
        times[alike] += visit.times
    return [replace(o, cycles=n, times=times[o]) for o, n in cycles.most_common()]


def by_scope(operations: Iterable[Operation]) -> dict[str, dict[str, float]]:
    """Mcycles by scope and direction, the largest scope first."""
    table: dict[str, Counter[str]] = {}
    for operation in operations:
        table.setdefault(operation.scope, Counter())[operation.direction] += operation.cycles
    ranked = sorted(table.items(), key=lambda item: -item[1].total())
    return {scope: {name: n / 1e6 for name, n in by.items()} for scope, by in ranked}


def unestimated(module: Module) -> int:
    """Executions in a step of operations for which the compiler has no estimate."""
    visits = (v for v in module.walk() if not v.fused and v.instruction.is_unestimated)
    return sum(visit.times for visit in visits)


def direction_of(op_name: str) -> str:
    return next((name for name, regex in PASSES if re.search(regex, op_name)), "update")


def _named(module: Module, instruction: Instruction) -> Instruction:
    """The instruction, or if it has no name the last one inside its fusion that has one."""
    if instruction.op_name or instruction.opcode != "fusion":
        return instruction
    inner = module.computations[instruction.called[0]].values()
    return next((i for i in reversed(list(inner)) if i.op_name), instruction)


def _scopes_inside(module: Module, visit: Visit) -> set[str]:
    if visit.instruction.opcode != "fusion":
        return set()
    inner = module.computations[visit.instruction.called[0]].values()
    return {instruction.scope for instruction in inner} - {UNSCOPED, "layers"}


def published_for(n_params: int, topology: Topology, length: int) -> list[Record]:
    """Published speeds of models within a tenth of this size, at this length, on this hardware."""
    return [
        {"model": model, "tokens_per_second": rate, "source": source}
        for model, size, name, rate, source in PUBLISHED
        if name == topology.name and length == 1024 and abs(size / n_params - 1) < 0.1
    ]
