"""Which example of which set each row of each step holds.

A run reads its sets by one walk, unless its batch size, its weights or a set changes on the way:
then another walk begins at that step, and each set continues where it was. `run.json` records the
walks, so that a row remains a pure function of the record, step and row.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np

from gpt_pjit.config import Config
from gpt_pjit.core.tokens.index import Mixture, hash64


class Reading(NamedTuple):
    """How a set is read: in the order of `seed`, after `taken` of its examples."""

    sha256: str
    seed: int
    taken: int


@dataclass(frozen=True)
class Walk:
    """How sets are read from `step` on; `stages` are weights, each from its first step on."""

    step: int
    seed: int  # of the run
    sequence_length: int
    batch_size: int
    stages: tuple[tuple[int, tuple[float, ...]], ...]
    sets: tuple[Reading, ...]

    def draw(self, step: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(set, number within the set) of the example in each of the int64 rows of `step`."""
        return self._mixture.draw((step - self.step) * self.batch_size + rows)

    def taken(self, step: int) -> list[int]:
        """How many examples of each set come before `step`."""
        return self._mixture.drawn((step - self.step) * self.batch_size)

    @cached_property
    def _mixture(self) -> Mixture:
        past = [weights for step, weights in self.stages if step <= self.step]
        later = [(step, weights) for step, weights in self.stages if step > self.step]
        stages = [(self.step, past[-1]), *later]
        examples = [((step - self.step) * self.batch_size, weights) for step, weights in stages]
        return Mixture(examples, [each.taken for each in self.sets])

    def reads_as(self, other: Self) -> bool:
        """Whether `other` differs only in where it began."""
        mine = dataclasses.replace(self, step=0, sets=()), [each.sha256 for each in self.sets]
        return mine == (
            dataclasses.replace(other, step=0, sets=()),
            [each.sha256 for each in other.sets],
        )


def first_walk(config: Config, sets: Sequence[str]) -> Walk:
    """The walk of a run that begins at step 0; `sets` are the SHA-256 of each set."""
    seeds = [config.seed]
    if len(sets) > 1:
        seeds = [int(hash64(config.seed, s)[0]) for s in range(len(sets))]
    readings = tuple(Reading(sha256, seed, 0) for sha256, seed in zip(sets, seeds, strict=True))
    data = config.data
    return Walk(0, config.seed, data.sequence_length, data.batch_size, data.stages, readings)


def walks_on(walks: Sequence[Walk], step: int, config: Config, sets: Sequence[str]) -> list[Walk]:
    """The `walks` up to `step`, and one that begins there if `config` or `sets` ask for another.

    A set that is read already continues in its order; but it begins anew, like a new one, if the
    seed or the length of sequences is another.
    """
    *earlier, last = [walk for walk in walks if walk.step <= step]
    now = dataclasses.replace(first_walk(config, sets), step=step)
    if now.reads_as(last):
        return [*earlier, last]
    left: list[Reading] = []
    if (last.seed, last.sequence_length) == (now.seed, now.sequence_length):
        taken = zip(last.sets, last.taken(step), strict=True)
        left = [each._replace(taken=number) for each, number in taken]
    readings = []
    for new in now.sets:
        old = next((each for each in left if each.sha256 == new.sha256), new)
        readings.append(old)
        left = [each for each in left if each is not old]
    before = [walk for walk in (*earlier, last) if walk.step < step]
    return [*before, dataclasses.replace(now, sets=tuple(readings))]


def walks_of(config: Config, record: Mapping[str, Any]) -> list[Walk]:
    """The walks of the run with this `run.json`; it has begun."""
    if "walks" not in record:  # older than walks
        return [first_walk(config, [each["sha256"] for each in record["data"]])]

    def walk(fields: dict[str, Any]) -> Walk:
        stages = tuple((stage["step"], tuple(stage["weights"])) for stage in fields["stages"])
        sets = tuple(Reading(**each) for each in fields["sets"])
        return Walk(**fields | {"stages": stages, "sets": sets})

    return list(map(walk, record["walks"]))


def walk_to_json(walk: Walk) -> dict[str, Any]:
    """As `run.json` has it."""
    stages = [{"step": step, "weights": list(weights)} for step, weights in walk.stages]
    sets = [each._asdict() for each in walk.sets]
    return dataclasses.asdict(walk) | {"stages": stages, "sets": sets}


def tokens_before(walks: Sequence[Walk], step: int) -> int:
    """How many tokens were trained on before `step`."""
    ends = [min(walk.step, step) for walk in walks[1:]] + [step]
    return sum(
        max(end - walk.step, 0) * walk.batch_size * walk.sequence_length
        for walk, end in zip(walks, ends, strict=True)
    )
