"""The compiler's estimated cycles, rolled up through loops, and what follows from them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from gpt_pjit.config import Config
from gpt_pjit.core.chips import flops_per_token
from gpt_pjit.plan.collectives import loop_label
from gpt_pjit.plan.hlo import Instruction, Module, Visit
from gpt_pjit.plan.topology import Topology

# First match wins, on `LOOPS | OP NAME @ FUNCTION < CALLER < ...`. Matrix products are known by
# their equation, which JAX keeps through differentiation.
SCOPES = (
    ("gathers", r"gather_weights|gather_layer"),
    ("gradient reduction", r"reduce_gradients|jit\(train_step\)/reshard"),
    ("optimizer", r"/optimizer/"),
    ("embedding", r"Embedding\.__call__"),
    ("loss head", r"ND,VD->NV|loss\.py|^(?!.*layer loop).*@ project"),
    ("attention scores", r"[A-Z]+K,[A-Z]+K->[A-Z]+S\b"),
    ("attention values", r"[A-Z]+S,[A-Z]+K->[A-Z]+K\b"),
    ("dropout", r"dropout|bernoulli"),
    ("attention softmax", r"Attention\._|softmax"),
    ("attention projections", r"ND,DC?HK->NC?HK|NHK,HKD->ND|Attention\."),
    ("MLP", r"ND,DF->NF|NF,FD->ND|gelu|MLP"),
    ("norms", r"LayerNorm|BTD,D->BTD"),
    ("gradient accumulation", r"@ make_train_step\.<locals>\.gradients"),
    ("layers, other", r"layer loop.*(project|Block|_run_blocks)|_run_blocks"),
    ("copies", r"\| $"),
    ("other", r""),
)
PASSES = (("recompute", "rematted_computation"), ("backward", r"transpose\("), ("forward", r"jvp"))
OURS = re.compile(r"/(gpt_pjit/(?:model|training|partition)/\w+\.py)$")
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
    """Equal operations of the program, summed; `also` are scopes that its fusion holds besides."""

    scope: str
    direction: str
    name: str
    source: str
    cycles: int
    times: int
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cost:
    """`cycles` is None where no compiler counts them: then times are those at the chip's peak."""

    cycles: int | None
    operations: tuple[Operation, ...]
    unestimated: int  # executions a step of operations for which the compiler has no estimate
    compute_seconds: float
    collective_seconds: float
    tokens_per_step: int
    flops_per_token: int
    peak_flops: float  # of all devices
    steps: int
    chips: int

    @property
    def step_seconds(self) -> float:
        return self.compute_seconds + self.collective_seconds

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_per_step / self.step_seconds

    @property
    def mfu(self) -> float:
        return self.tokens_per_second * self.flops_per_token / self.peak_flops

    @property
    def days(self) -> float:
        return self.steps * self.step_seconds / 86400

    def dollars(self, per_chip_hour: float) -> float:
        return self.days * 24 * self.chips * per_chip_hour

    def by_scope(self) -> dict[str, Counter[str]]:
        """Cycles by scope and direction, the largest scope first."""
        table: dict[str, Counter[str]] = {}
        for operation in self.operations:
            table.setdefault(operation.scope, Counter())[operation.direction] += operation.cycles
        return dict(sorted(table.items(), key=lambda item: -item[1].total()))


def cost_of(
    config: Config,
    topology: Topology,
    n_params: int,
    module: Module | None,
    sent_bytes: int,
) -> Cost:
    """`sent_bytes` by a device in a step; without a `module` times are those at the peak."""
    c, chip = config.model, topology.chip
    per_token = flops_per_token(n_params, c.n_layers, c.d_model, config.data.sequence_length)
    tokens = config.data.batch_size * config.data.sequence_length
    operations = roll_up(module) if module and chip.clock else ()
    cycles = sum(operation.cycles for operation in operations) if operations else None
    if cycles is not None and chip.clock:
        seconds = cycles / chip.clock
    else:  # nobody is faster than the peak; whole blocks recomputed are a third more
        recomputed = 4 / 3 if c.remat == "full" else 1
        seconds = tokens * per_token * recomputed / (topology.devices * chip.peak_flops)
    return Cost(
        cycles=cycles,
        operations=operations,
        unestimated=unestimated(module) if module else 0,
        compute_seconds=seconds,
        collective_seconds=sent_bytes / chip.link_per_device,
        tokens_per_step=tokens,
        flops_per_token=per_token,
        peak_flops=topology.devices * chip.peak_flops,
        steps=config.optim.steps,
        chips=topology.chips,
    )


def roll_up(module: Module) -> tuple[Operation, ...]:
    """Every operation with an estimate, its cycles times its executions a step, largest first."""
    cycles: Counter[tuple[str, str, str, str, tuple[str, ...]]] = Counter()
    times: Counter[tuple[str, str, str, str, tuple[str, ...]]] = Counter()
    for visit in module.walk():
        if visit.fused or not visit.instruction.cycles:
            continue
        named = _named(module, visit.instruction)
        scope = _scope(module, named, visit)
        key = (
            scope,
            direction_of(named.op_name),
            named.op_name.rsplit("/", 2)[-1] or visit.instruction.opcode,
            source_of(module, named),
            tuple(sorted(_inside(module, visit) - {scope})),
        )
        cycles[key] += visit.instruction.cycles * visit.times
        times[key] += visit.times
    return tuple(
        Operation(*key[:4], cycles=n, times=times[key], also=key[4])
        for key, n in cycles.most_common()
    )


def unestimated(module: Module) -> int:
    visits = (v for v in module.walk() if not v.fused and v.instruction.is_unestimated)
    return sum(visit.times for visit in visits)


def direction_of(op_name: str) -> str:
    return next((name for name, regex in PASSES if re.search(regex, op_name)), "update")


def source_of(module: Module, instruction: Instruction) -> str:
    """`gpt_pjit/model/loss.py:17`, the innermost line of ours that led to it."""
    for frame in module.frames(instruction):
        if match := OURS.search(frame.file):
            return f"{match.group(1)}:{frame.line}"
    return ""


def _named(module: Module, instruction: Instruction) -> Instruction:
    """The instruction, or if it has no name the last one inside its fusion that has."""
    if instruction.op_name or instruction.opcode != "fusion":
        return instruction
    inner = module.computations[instruction.find(r"calls=%?([\w.\-]+)")].values()
    return next((i for i in reversed(list(inner)) if i.op_name), instruction)


def _scope(module: Module, instruction: Instruction, visit: Visit) -> str:
    frames = module.frames(instruction)
    functions = " < ".join(frame.function for frame in frames)
    files = " ".join(frame.file.rsplit("/", 1)[-1] for frame in frames[:2])
    loops = " ".join(loop_label(module, loop) for loop in visit.loops)
    text = f"{loops} {files} | {instruction.op_name}" + (f" @ {functions}" if frames else "")
    return next(scope for scope, regex in SCOPES if re.search(regex, text))


def _inside(module: Module, visit: Visit) -> set[str]:
    """Scopes of the matrix products and random bits that a fusion holds besides its own."""
    if visit.instruction.opcode != "fusion":
        return set()
    inner = module.computations[visit.instruction.find(r"calls=%?([\w.\-]+)")].values()
    return {_scope(module, i, visit) for i in inner if i.op_name} - {"other", "copies"}


def published_for(n_params: int, topology: Topology, length: int) -> list[Mapping[str, object]]:
    """Published speeds of models within a tenth of this size, at this length, on this hardware."""
    return [
        {"model": model, "tokens_per_second": rate, "source": source}
        for model, size, name, rate, source in PUBLISHED
        if name == topology.name and length == 1024 and abs(size / n_params - 1) < 0.1
    ]
