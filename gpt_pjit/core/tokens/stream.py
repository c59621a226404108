"""Batches of token windows: training without end, validation once over the split.

Grain maps batch numbers to batches and reads ahead. Its iterators' states are never saved: a batch
is a pure function of its number, so a run resumes with `start`, on any number of hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

import grain
import numpy as np

from gpt_pjit.config import Config
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens.dataset import TokenSplit
from gpt_pjit.core.tokens.index import windows
from gpt_pjit.core.tokens.training_data import TrainingData

READ_AHEAD = 8  # batches


class Batch(NamedTuple):
    """Rows of a batch: tokens int32 [B, T + 1]; for validation, weights float32 [B, T] of the
    targets; where documents are masked, int32 [B, T + 1] numbers of the documents in each row.
    """

    tokens: np.ndarray
    weights: np.ndarray | None = None
    segments: np.ndarray | None = None


def train_batches(
    data: TrainingData,
    *,
    seed: int,
    batch_size: int,
    sequence_length: int,
    rows: slice,
    start: int,
    stop: int,
    mask_documents: bool = False,
) -> Generator[Batch, None, None]:
    """This host's `rows` of each batch from `start` up to `stop`."""
    for split in data.splits:
        if windows(split.tokens, sequence_length) < 1:
            raise _too_small(split, 2 * sequence_length, f"data.sequence_length={sequence_length}")

    def batch(step: int) -> Batch:
        example = step * batch_size + np.arange(rows.start, rows.stop, dtype=np.int64)
        tokens = np.empty((len(example), sequence_length + 1), np.int32)
        for split, mine, starts in data.windows(example, seed, sequence_length):
            tokens[mine] = split.read(starts, sequence_length + 1)
        return Batch(tokens, segments=segments(tokens, data.eot_id) if mask_documents else None)

    return _read_ahead(batch, range(start, stop), data.read_threads)


def validation_batches(
    split: TokenSplit,
    *,
    batch_size: int,
    sequence_length: int,
    rows: slice,
    batches: int = 0,
    mask_documents: bool = False,
) -> Generator[Batch, None, None]:
    """Batches over the split, equally many on all hosts; with `batches` above 0, that many.

    Every token but the split's first is a target of weight 1 once; padding has weight 0, as have
    the first tokens of documents where documents are masked. Some batches are spread evenly over
    the split.
    """
    if split.tokens < 2:
        raise _too_small(split, 2, "validation")
    total = -(-(split.tokens - 1) // (batch_size * sequence_length))
    count = min(batches, total) or total

    def batch(i: int) -> Batch:
        window = i * total // count * batch_size + np.arange(rows.start, rows.stop)
        tokens, weights = _padded_windows(split, window * sequence_length, sequence_length)
        if not mask_documents:
            return Batch(tokens, weights)
        document = segments(tokens, split.eot_id)
        return Batch(tokens, weights * (document[:, 1:] == document[:, :-1]), document)

    return _read_ahead(batch, range(count), split.read_threads)


def held_out_batches(data: TrainingData, config: Config, rows: slice) -> Iterator[Batch]:
    """`validation_batches` of every set, as the run of `config` makes them."""
    for split in data.held_out:
        yield from validation_batches(
            split,
            batch_size=config.data.batch_size,
            sequence_length=config.data.sequence_length,
            rows=rows,
            batches=config.eval.batches,
            mask_documents=config.data.mask_documents,
        )


def segments(tokens: np.ndarray, eot_id: int) -> np.ndarray:
    """int32 [B, T + 1]: which document of its row each token is of, counted from 0.

    End-of-text is after each document and nowhere else, so the tokens tell what the boundary array
    does, and no array of offsets is searched or kept in memory.
    """
    ends = np.cumsum(tokens == eot_id, axis=1, dtype=np.int32)
    return np.concatenate([np.zeros_like(ends[:, :1]), ends[:, :-1]], axis=1)


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


class _Batches:
    """The random-access source that Grain reads: element i is `batch(i)`."""

    def __init__(self, batch: Callable[[int], Batch], length: int):
        self._batch, self._length = batch, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> Batch:
        return self._batch(int(number))


def _read_ahead(
    batch: Callable[[int], Batch], numbers: range, threads: int
) -> Generator[Batch, None, None]:
    source = grain.MapDataset.source(_Batches(batch, numbers.stop))[numbers.start :]
    iterator = iter(source.to_iter_dataset(grain.ReadOptions(threads, READ_AHEAD)))
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
