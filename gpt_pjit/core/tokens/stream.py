"""Batches of token windows: training up to the last step, validation once over the split.

Grain maps batch numbers to batches and reads ahead. Its iterator state is never saved: a batch is a
pure function of its number, so a run resumes from `start` on any number of hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

import numpy as np

from gpt_pjit.config import Config
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens.dataset import TokenSplit
from gpt_pjit.core.tokens.index import windows
from gpt_pjit.core.tokens.mixture import TrainingData

READ_AHEAD = 8  # batches


class Batch(NamedTuple):
    """Rows of a batch: tokens int32 [B, T + 1]; for validation, `mask` float32 [B, T], 1 for each
    target that counts; if documents are masked, `segments` int32 [B, T + 1], the number of each
    token's document within its row.
    """

    tokens: np.ndarray
    mask: np.ndarray | None = None
    segments: np.ndarray | None = None


def train_batches(
    data: TrainingData, config: Config, rows: np.ndarray, start: int = 0
) -> Generator[Batch, None, None]:
    """The rows numbered `rows` of each batch from step `start` to the last."""
    length = config.data.sequence_length
    for split in data.splits:
        if windows(split.tokens, length) < 1:
            problem = (
                f"split {split.name!r} holds {split.tokens:,} tokens, but "
                f"data.sequence_length={length} needs at least {2 * length:,}"
            )
            raise ConfigError([problem], f"token dataset {split.path}")

    def batch(step: int) -> Batch:
        example = step * config.data.batch_size + rows.astype(np.int64)
        tokens = np.empty((len(example), length + 1), np.int32)
        for split, mine, starts in data.windows(example, config.seed, length):
            tokens[mine] = split.read(starts, length + 1)
        masked = config.data.mask_documents
        return Batch(tokens, segments=segments(tokens, data.eot_id) if masked else None)

    return _read_ahead(batch, range(start, config.optim.steps), data.read_threads)


def held_out_batches(data: TrainingData, config: Config, rows: np.ndarray) -> Iterator[Batch]:
    """`validation_batches` of every set; none if no set has text to validate on."""
    for split in data.held_out:
        yield from validation_batches(split, config, rows)


def validation_batches(
    split: TokenSplit, config: Config, rows: np.ndarray
) -> Generator[Batch, None, None]:
    """The rows numbered `rows` of each batch of the split, or of `eval.batches` spread over it.

    Each token but the split's first is a target once. Padding is masked, and so is the first token
    of each document if documents are masked. All hosts have the same number of batches.
    """
    length, batch_size = config.data.sequence_length, config.data.batch_size
    total = -(-max(split.tokens - 1, 0) // (batch_size * length))
    count = min(config.eval.batches, total) or total

    def batch(i: int) -> Batch:
        window = i * total // count * batch_size + rows
        tokens, mask = _padded_windows(split, window * length, length)
        if not config.data.mask_documents:
            return Batch(tokens, mask)
        document = segments(tokens, split.eot_id)
        return Batch(tokens, mask * (document[:, 1:] == document[:, :-1]), document)

    return _read_ahead(batch, range(count), split.read_threads)


def segments(tokens: np.ndarray, eot_id: int) -> np.ndarray:
    """int32 [B, T + 1]: the number, from 0, of each token's document within its row.

    End-of-text is at the end of each document and nowhere else, so the tokens alone determine it.
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
    for row in np.flatnonzero(~whole & (lengths > 1)):  # one in the whole split
        tokens[row, : lengths[row]] = split.read(starts[row : row + 1], lengths[row])
    mask = np.arange(1, sequence_length + 1) < lengths[:, None]
    return tokens, mask.astype(np.float32)


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
    import grain  # late: it imports JAX, which tokenising workers must not

    dataset = grain.MapDataset.source(_Batches(batch, numbers.stop))[numbers.start :]
    iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(threads, READ_AHEAD)))
    try:
        yield from iterator
    finally:
        iterator.close()  # cancels the queue; its threads end with the current batch
