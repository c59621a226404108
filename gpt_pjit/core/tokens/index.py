"""Which tokens a training example holds: pure functions of (seed, step, row), with no state.

An epoch cuts the text into `n` examples of `T` tokens, starting at a random offset below `T`, and
visits them in a random order. Nothing depends on hosts or on earlier reads, so a run resumes at
any step, on any number of hosts, by computing. In a mixture of sets, weights become a cycle of
whole examples, 0.7 and 0.3 are 7 and 3 of every 10, and each set walks its own epochs. Where the
weights change, another cycle begins, and the sets walk on. docs/token_datasets.md says the same in
prose.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from gpt_pjit.core.errors import ConfigError

ROUNDS = 16  # the fewest that make all orders of six examples equally likely; 0.2 ms a batch
LONGEST_CYCLE = 10_000  # examples


def examples_per_epoch(tokens: int, sequence_length: int) -> int:
    """They fit at any offset below T."""
    return (tokens - sequence_length) // sequence_length


def example_starts(
    example: np.ndarray, *, seed: int | np.ndarray, sequence_length: int, tokens: int
) -> np.ndarray:
    """The first token, int64, of each int64 example.

    Example i is row i % B of the batch of step i // B. An example is T + 1 tokens long, inputs and
    shifted targets, so neighbours share one token and no token is a target twice in an epoch.
    """
    n = examples_per_epoch(tokens, sequence_length)
    assert n >= 1, f"{tokens} tokens are too few for an example of {sequence_length}"
    epoch, position = np.divmod(example, n)
    position = permute(position, n, hash64(seed, epoch, 0))
    offset = hash64(seed, epoch, 1) % np.uint64(sequence_length)
    return offset.astype(np.int64) + position * sequence_length


def permute(positions: np.ndarray, n: int, key: int | np.ndarray) -> np.ndarray:
    """Where a random permutation of range(n), chosen by `key`, puts int64 `positions`.

    `key` is one integer, or one for each position. A Feistel network on an a x b grid that holds
    n cells or a few more; a result in a surplus cell is permuted again until it falls below n,
    which keeps the map a bijection.
    """
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    keys = np.broadcast_to(np.asarray(key).astype(np.uint64), positions.shape)
    result = _feistel(positions, a, b, keys)
    outside = np.flatnonzero(result >= n)
    while outside.size:
        result[outside] = _feistel(result[outside], a, b, keys[outside])
        outside = outside[result[outside] >= n]
    return result


def hash64(*words: int | np.ndarray) -> np.ndarray:
    """uint64 hash of the words in order; arrays broadcast, and the result has at least one dim."""
    state = np.zeros(1, np.uint64)
    for word in words:
        state = _splitmix64(state ^ np.asarray(word).astype(np.uint64))
    return state


def _feistel(positions: np.ndarray, a: int, b: int, keys: np.ndarray) -> np.ndarray:
    # Each round adds to one coordinate a hash of the other, which can be undone: a bijection.
    round_keys = hash64(keys, np.arange(ROUNDS, dtype=np.uint64)[:, None])
    sizes = (np.uint64(a), np.uint64(b))
    cell = list(np.divmod(positions.astype(np.uint64), sizes[1]))
    for i in range(ROUNDS):
        side = i % 2
        noise = _splitmix64(round_keys[i] ^ cell[1 - side]) % sizes[side]
        cell[side] = (cell[side] + noise) % sizes[side]
    return (cell[0] * sizes[1] + cell[1]).astype(np.int64)


def _splitmix64(x: np.ndarray) -> np.ndarray:
    # One output of the generator splitmix64 in state x. Arrays of uint64 wrap around as it needs.
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def cycle_counts(weights: Sequence[float]) -> list[int]:
    """The fewest whole examples in the proportions of the weights, as they are written in decimal;
    some weight is above 0.

    Raises ConfigError if there are more than `LONGEST_CYCLE` of them.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    multiple = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * multiple) for weight in exact]
    counts = [count // math.gcd(*whole) for count in whole]
    if sum(counts) > LONGEST_CYCLE:
        problem = f"weights {weights} do not repeat within {LONGEST_CYCLE:,} examples; round them"
        raise ConfigError([problem], "data.sources")
    return counts


class Cycle:
    """Which set each example comes from, and its number among the examples of that set."""

    def __init__(self, weights: Sequence[float]):
        self.counts = np.array(cycle_counts(weights))
        self._cycle = _even_cycle(self.counts.tolist())
        taken = self._cycle[:, None] == np.arange(len(self.counts))
        self._before = np.concatenate([np.zeros((1, len(self.counts)), int), taken.cumsum(axis=0)])

    def draw(self, example: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(set, number within the set) of int64 examples."""
        cycle, place = np.divmod(example, len(self._cycle))
        chosen = self._cycle[place]
        return chosen, cycle * self.counts[chosen] + self._before[place, chosen]

    def drawn(self, examples: int) -> list[int]:
        """How many of the first `examples` come from each set."""
        cycle, place = divmod(examples, len(self._cycle))
        return (cycle * self.counts + self._before[place]).tolist()


class Mixture:
    """A cycle for each stage. `stages` are pairs of a first example, ascending from 0, and the
    weights from there on; `taken` examples of each set came before.
    """

    def __init__(self, stages: Sequence[tuple[int, Sequence[float]]], taken: Sequence[int]):
        self._first = np.array([first for first, _ in stages])
        self._cycles = [Cycle(weights) for _, weights in stages]
        lengths = np.diff(self._first).tolist()
        drawn = [cycle.drawn(n) for cycle, n in zip(self._cycles, lengths, strict=False)]
        self._before = np.cumsum([list(taken), *drawn], axis=0)  # [stage, set]

    def draw(self, example: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(set, number within the set) of int64 examples."""
        chosen, number = np.empty_like(example), np.empty_like(example)
        stage = self._stage(example)
        for s in np.unique(stage):
            mine = stage == s
            chosen[mine], number[mine] = self._cycles[s].draw(example[mine] - self._first[s])
        return chosen, number + self._before[stage, chosen]

    def drawn(self, examples: int) -> list[int]:
        """How many of each set came before example `examples`."""
        s = int(self._stage(examples))
        now = self._cycles[s].drawn(examples - int(self._first[s]))
        return (self._before[s] + now).tolist()

    def _stage(self, example: Any) -> Any:
        return np.searchsorted(self._first, example, side="right") - 1


def _even_cycle(counts: list[int]) -> np.ndarray:
    """The sets of a cycle, by Tijdeman's rule (the chairman assignment problem, 1980).

    Of the sets that may have one more without having one too many, the next example goes to the
    one that must have it soonest.
    """
    total = sum(counts)
    taken = [0] * len(counts)
    cycle = np.empty(total, np.int64)
    # A set must stay 1 / slack of an example below too many.
    slack = max(2 * sum(map(bool, counts)) - 2, 1)
    for i in range(total):
        # Integers: `due` is total * slack times (share of i + 1 examples - taken).
        due = [((i + 1) * counts[s] - total * taken[s]) * slack for s in range(len(counts))]
        ready = [s for s in range(len(counts)) if due[s] >= total]
        cycle[i] = min(ready, key=lambda s: ((total * (slack - 1) - due[s]) / counts[s], s))
        taken[cycle[i]] += 1
    return cycle
