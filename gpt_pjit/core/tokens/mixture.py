"""What a run trains and validates on: one set, or several in a mixture.

Weights become a cycle of whole examples: 0.7 and 0.3 are 7 and 3 of every 10. Within a cycle the
sets alternate evenly: after any number of examples each is less than one example from its share.
Each set walks its own epochs over its own windows. Which set an example comes from
is a pure function of its number, as in `index.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from gpt_pjit.config import DataConfig
from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.core.tokens.dataset import TokenDataset, TokenSplit
from gpt_pjit.core.tokens.index import hash64, window_starts, windows
from gpt_pjit.core.tokens.tokenizers import Tokenizer

LONGEST_CYCLE = 10_000


class TrainingData:
    """One or more sets of one tokenizer; `splits` are their training splits.

    `held_out` are the validation splits that hold text to score; there may be none.
    """

    def __init__(self, datasets: Sequence[TokenDataset], weights: Sequence[float] = (1,)):
        self.datasets, self._schedule = list(datasets), Schedule(weights)
        self.splits = [dataset.splits["train"] for dataset in datasets]
        held_out = [dataset.splits.get("validation") for dataset in datasets]
        self.held_out = [s for s in held_out if s and s.tokens > 1 and s.source_bytes]
        self.held_out_tokens = sum(split.tokens for split in self.held_out)
        self.held_out_bytes = sum(split.source_bytes for split in self.held_out)
        self.eot_id = datasets[0].eot_id
        self.read_threads = max(split.read_threads for split in self.splits)

    def tokenizer(self) -> Tokenizer:
        return self.datasets[0].tokenizer()

    def windows(
        self, example: np.ndarray, seed: int, sequence_length: int
    ) -> Iterator[tuple[TokenSplit, np.ndarray, np.ndarray]]:
        """For each set: its split, which of the int64 examples it has, and their first tokens."""
        chosen, number = self._schedule.draw(example)
        for s, split in enumerate(self.splits):
            mine = np.flatnonzero(chosen == s)
            yield (
                split,
                mine,
                window_starts(
                    number[mine],
                    seed=seed if len(self.splits) == 1 else int(hash64(seed, s)[0]),
                    sequence_length=sequence_length,
                    tokens=split.tokens,
                ),
            )

    def identity(self) -> list[dict[str, str | int]]:
        """What must stay the same when a run resumes."""
        return [
            {
                "path": dataset.path,
                "tokenizer": dataset.info.tokenizer.sha256,
                "vocab_size": dataset.vocab_size,
                "sha256": dataset.fingerprint,
            }
            for dataset in self.datasets
        ]

    def proportions(self, examples: int, sequence_length: int) -> str:
        """A line for each set: how many of the first `examples` of a run came from it."""
        lines = []
        for split, drawn in zip(self.splits, self._schedule.drawn(examples), strict=True):
            epochs = drawn / windows(split.tokens, sequence_length)
            share = drawn / max(examples, 1)
            lines.append(f"{share:7.2%}  {drawn:,} examples, {epochs:.2f} epochs of {split.path}")
        return "\n".join(lines)


def open_data(config: DataConfig, folder: Path, vocab_size: int) -> TrainingData:
    """The set at `config.path`, the mixture of `config.sources`, or, in `folder`, the set made from
    `config.text`.

    Raises ConfigError if ids do not fit `vocab_size`, the model's, or sets do not fit each other.
    """
    if not config.sources:
        return TrainingData([_open(folder if config.text else config.path, vocab_size)])
    paths, weights = zip(*config.sources, strict=True)
    try:
        cycle_counts(weights)
    except ValueError as error:
        raise ConfigError([f"weights {weights} {error}; round them"], "data.sources") from None
    first, *others = datasets = [_open(path, vocab_size) for path in paths]
    problems = [
        f"{other.path} has tokenizer {other.info.tokenizer.name}, SHA-256 "
        f"{other.info.tokenizer.sha256}, but {first.path} has {first.info.tokenizer.name}, "
        f"{first.info.tokenizer.sha256}"
        for other in others
        if other.info.tokenizer.sha256 != first.info.tokenizer.sha256
    ]
    if problems:
        raise ConfigError(problems, "data.sources")
    return TrainingData(datasets, weights)


def _open(path: Path | str, vocab_size: int) -> TokenDataset:
    dataset = TokenDataset.open(path)
    check_vocabulary(dataset.info.tokenizer.name, dataset.vocab_size, vocab_size)
    if "train" not in dataset.splits:
        raise ConfigError(["has no split 'train'"], f"token dataset {dataset.path}")
    return dataset


def check_vocabulary(name: str, needed: int, vocab_size: int) -> None:
    """Raises ConfigError if tokenizer `name` has more ids, `needed`, than the model."""
    if needed > vocab_size:
        constraint = f"is smaller than the {needed} ids of tokenizer {name}"
        remedy = f"set it to at least {needed}; {-(-needed // 128) * 128} divides well"
        raise ConfigError([Problem("model.vocab_size", vocab_size, constraint, remedy)])


def cycle_counts(weights: Sequence[float]) -> list[int]:
    """The smallest whole numbers in the proportions of the weights, read as decimals.

    Raises ValueError if they sum to more than `LONGEST_CYCLE`.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    multiple = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * multiple) for weight in exact]
    counts = [count // math.gcd(*whole) for count in whole]
    if min(counts) < 1 or sum(counts) > LONGEST_CYCLE:
        raise ValueError(f"do not repeat within {LONGEST_CYCLE:,} examples")
    return counts


class Schedule:
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


def _even_cycle(counts: list[int]) -> np.ndarray:
    """The sets of a cycle, by Tijdeman's rule (the chairman assignment problem, 1980).

    Of the sets that can take one more example without exceeding their share by a whole one, the
    next example goes to the one that needs it soonest.
    """
    total = sum(counts)
    taken = [0] * len(counts)
    cycle = np.empty(total, np.int64)
    slack = 2 * len(counts) - 2 or 1  # a set stays 1 / slack of an example below one too many
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
