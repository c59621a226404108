"""Examples from several sets by weight: a pure function of an example's number, as in `index.py`.

The weights are a cycle of whole examples: 0.7 and 0.3 are 7 and 3 of every 10. Within a cycle each
source comes as evenly as can be: after any number of examples each has less than one more or less
than its weight says. Each source walks its own epochs over its own windows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

LONGEST_CYCLE = 10_000


def cycle_counts(weights: Sequence[float]) -> list[int]:
    """The fewest whole examples in the proportions of the weights, as they are written in decimal.

    Raises ValueError if there are more than `LONGEST_CYCLE` of them.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    multiple = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * multiple) for weight in exact]
    counts = [count // math.gcd(*whole) for count in whole]
    if min(counts) < 1 or sum(counts) > LONGEST_CYCLE:
        raise ValueError(f"are no cycle of {LONGEST_CYCLE:,} or fewer examples")
    return counts


class Schedule:
    """Which source each example comes from, and its number among the examples of that source."""

    def __init__(self, weights: Sequence[float]):
        self.counts = np.array(cycle_counts(weights))
        self._source = _even_cycle(self.counts.tolist())
        taken = self._source[:, None] == np.arange(len(self.counts))
        self._before = np.concatenate([np.zeros((1, len(self.counts)), int), taken.cumsum(axis=0)])

    def draw(self, example: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, number within the source) of int64 examples."""
        cycle, place = np.divmod(example, len(self._source))
        source = self._source[place]
        return source, cycle * self.counts[source] + self._before[place, source]

    def drawn(self, examples: int) -> list[int]:
        """How many of the first `examples` come from each source."""
        cycle, place = divmod(examples, len(self._source))
        return (cycle * self.counts + self._before[place]).tolist()


def _even_cycle(counts: list[int]) -> np.ndarray:
    """The sources of a cycle, by Tijdeman's rule (the chairman assignment problem, 1980).

    Of the sources that may have one more without having one too many, the next example goes to the
    one that must have it soonest.
    """
    total = sum(counts)
    taken = [0] * len(counts)
    cycle = np.empty(total, np.int64)
    slack = 2 * len(counts) - 2 or 1  # of 1, 1 / slack is how far from too many a source must stay
    for i in range(total):
        # Integers: `due` is total * slack times (share of i + 1 examples - taken).
        due = [
            ((i + 1) * count - total * n) * slack for count, n in zip(counts, taken, strict=True)
        ]
        ready = [s for s in range(len(counts)) if due[s] >= total]
        deadline = {s: (total * (slack - 1) - due[s]) / counts[s] for s in ready}
        cycle[i] = min(ready, key=lambda s: (deadline[s], s))
        taken[cycle[i]] += 1
    return cycle
