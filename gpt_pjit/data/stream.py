"""Batches of token windows: training without end, validation once over the split.

Grain maps batch numbers to batches and reads ahead. Its iterators' states are never saved: a batch
is a pure function of its number, so a run resumes with `start`, on any number of hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Generic, TypeVar

import grain
import numpy as np

from gpt_pjit.data.dataset import TokenSplit
from gpt_pjit.data.index import window_starts, windows
from gpt_pjit.errors import ConfigError

T = TypeVar("T")

# Measured, batches of 32 x 1,024 a second on 2 cores: a local set gave 1,000 with no thread, 830
# with 1, 790 with 2, 560 with 16; a server that answers after 30 ms gave 12 with 1, 14 with 2.
READ_AHEAD = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)


def train_batches(
    split: TokenSplit,
    *,
    seed: int,
    batch_size: int,
    sequence_length: int,
    rows: slice,
    start: int,
    stop: int,
) -> Generator[np.ndarray, None, None]:
    """int32 [rows, T + 1] tokens: this host's `rows` of each batch from `start` up to `stop`."""
    if windows(split.tokens, sequence_length) < 1:
        raise _too_small(split, 2 * sequence_length, f"data.sequence_length={sequence_length}")

    def batch(step: int) -> np.ndarray:
        starts = window_starts(
            step,
            rows,
            seed=seed,
            batch_size=batch_size,
            sequence_length=sequence_length,
            tokens=split.tokens,
        )
        return split.read(starts, sequence_length + 1)

    return _read_ahead(batch, range(start, stop))


def validation_batches(
    split: TokenSplit, *, batch_size: int, sequence_length: int, rows: slice, batches: int = 0
) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    """(int32 [rows, T + 1] tokens, float32 [rows, T] weights of the targets) over the split.

    Every token but the split's first is a target of weight 1 once; padding has weight 0. With
    `batches` above 0, that many batches spread evenly over the split. Equally many on all hosts.
    """
    if split.tokens < 2:
        raise _too_small(split, 2, "validation")
    total = -(-(split.tokens - 1) // (batch_size * sequence_length))
    count = min(batches, total) or total

    def batch(i: int) -> tuple[np.ndarray, np.ndarray]:
        window = i * total // count * batch_size + np.arange(rows.start, rows.stop)
        return _padded_windows(split, window * sequence_length, sequence_length)

    return _read_ahead(batch, range(count))


def _padded_windows(
    split: TokenSplit, starts: np.ndarray, sequence_length: int
) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.clip(split.tokens - starts, 0, sequence_length + 1)
    tokens = np.zeros((len(starts), sequence_length + 1), np.int32)
    whole = lengths == sequence_length + 1
    tokens[whole] = split.read(starts[whole], sequence_length + 1)
    for row in np.flatnonzero(~whole & (lengths > 1)):  # one in all the split
        tokens[row, : lengths[row]] = split.read(starts[row : row + 1], lengths[row])
    weights = np.arange(1, sequence_length + 1) < lengths[:, None]
    return tokens, weights.astype(np.float32)


class _Batches(Generic[T]):
    """The random-access source that Grain reads: element `number` is `batch(number)`."""

    def __init__(self, batch: Callable[[int], T], length: int):
        self._batch, self._length = batch, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> T:
        return self._batch(int(number))


def _read_ahead(batch: Callable[[int], T], numbers: range) -> Generator[T, None, None]:
    source = grain.MapDataset.source(_Batches(batch, numbers.stop))
    iterator = iter(source[numbers.start :].to_iter_dataset(READ_AHEAD))
    try:
        yield from iterator
    finally:
        iterator.close()  # cancels what is queued; its threads end with the batch they read


def _too_small(split: TokenSplit, needed: int, use: str) -> ConfigError:
    problem = (
        f"split {split.name!r} holds {split.tokens:,} tokens, {use} needs at least {needed:,}; "
        "give it more text, or set data.sequence_length or data.validation_fraction to fit"
    )
    return ConfigError([problem], f"token dataset {split.path}")
