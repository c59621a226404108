"""When transfers run: which of them the work between their start and their end hides."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gpt_pjit.core.chips import Chip
from gpt_pjit.pages import Record
from gpt_pjit.plan.bounds import cycles_of
from gpt_pjit.plan.collectives import collective_of, name_of
from gpt_pjit.plan.hlo import BODY, Instruction, Module

COPIES = "copies"  # between memories of a device, such as prefetches: one name for all
ASYNC_COPIES = ("copy-start", "slice-start")


@dataclass(frozen=True)
class Transfers:
    """Seconds of a step: of all collectives, and of the waits for them and for copies."""

    collectives: float
    exposed: float
    copies: float


def timed(collectives: Sequence[Record], module: Module, chip: Chip) -> Transfers:
    """Adds to each collective the seconds that it takes in a step, and how many are exposed.

    Exposed is what the step waits for it, or all of it if the schedule does not say.
    """
    once = {c["name"]: c["bytes"] / chip.link_per_device for c in collectives}
    waits = _Timeline(module, chip, once).run(module.entry)[1]
    for c in collectives:
        c["seconds"] = c["times"] * once[c["name"]]
        c["exposed_seconds"] = waits.get(c["name"], c["seconds"])
    every, exposed = (sum(c[key] for c in collectives) for key in ("seconds", "exposed_seconds"))
    return Transfers(every, exposed, waits.get(COPIES, 0.0))


@dataclass(frozen=True)
class _Timeline:
    """The schedule of a program, run: work in order, and two queues beside it.

    Collectives queue for the links and copies for the memory, each at its full bandwidth, from
    their start on; where they end, the work waits for what is left. `seconds` are those of one
    execution of each collective, by name.
    """

    module: Module
    chip: Chip
    seconds: Mapping[str, float]

    def run(self, computation: str) -> tuple[float, dict[str, float]]:
        """The seconds of one execution, and how many of them are waits, by what is waited for.

        Queues are empty at the start of a loop's body.
        """
        scope = self.module.computations[computation]
        transfers = self._transfers(scope)
        last = {name: place for place, (name, _) in transfers.items()}
        now, ends, free = 0.0, dict[str, float](), {True: 0.0, False: 0.0}
        waits: defaultdict[str, float] = defaultdict(float)
        for instruction in scope.values():
            for times, inner in self._inner(computation, instruction):
                spent, waited = self.run(inner)
                now += times * spent
                for name, wait in waited.items():
                    waits[name] += times * wait
            now += cycles_of(self.module, instruction, scope, self.chip) / self.chip.clock
            if instruction.name not in transfers:
                continue
            name, seconds = transfers[instruction.name]
            is_copy = name not in self.seconds
            if name in ends:
                left = max(0.0, ends[name] - now)
            else:
                left = max(0.0, free[is_copy] - now) + seconds
                ends[name] = free[is_copy] = now + left
            if last[name] == instruction.name:
                waits[COPIES if is_copy else name] += left
                now += left
        return now, waits

    def _inner(self, computation: str, instruction: Instruction) -> Iterator[tuple[int, str]]:
        if instruction.opcode == "while":
            yield self.module.trips(computation, instruction), instruction.find(BODY)
        elif instruction.opcode in ("call", "conditional"):
            yield from ((1, called) for called in instruction.called)

    def _transfers(self, scope: Mapping[str, Instruction]) -> dict[str, tuple[str, float]]:
        """For instructions that start, carry on or end a transfer, its name and seconds.

        One that is not asynchronous starts and ends in the same instruction.
        """
        found: dict[str, tuple[str, float]] = {}
        for instruction in scope.values():
            if of := collective_of(self.module, instruction):
                found[instruction.name] = name_of(of), self.seconds[name_of(of)]
            elif instruction.opcode in ASYNC_COPIES:  # (operand, result, context), in some order
                nbytes = instruction.arrays[-2].nbytes
                found[instruction.name] = instruction.name, nbytes / self.chip.hbm_bandwidth
            elif (
                instruction.opcode.endswith(("-update", "-done"))
                and instruction.operands[0] in found
            ):
                found[instruction.name] = found[instruction.operands[0]]
        return found
