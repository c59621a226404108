"""What a run trains and validates on, one set or a mixture, and its batches.

Grain maps batch numbers to batches and reads ahead. Its iterator state is never saved: a batch is a
pure function of its number, so a run resumes from `start` on any number of hosts.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt_pjit.config import Config, DataConfig
from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.core.tokens.dataset import TokenDataset, TokenSplit
from gpt_pjit.core.tokens.index import cycle_counts, example_starts, examples_per_epoch
from gpt_pjit.core.tokens.tokenizers import Tokenizer
from gpt_pjit.core.tokens.walk import Walk, first_walk

READ_AHEAD = 8  # batches


class TrainingData:
    """One or more sets of one tokenizer; `splits` are their training splits.

    `held_out` are the validation splits that hold text to score: none, if a set has no such split.
    """

    def __init__(self, datasets: Sequence[TokenDataset]):
        self.datasets = list(datasets)
        self.splits = [dataset.splits["train"] for dataset in datasets]
        held_out = [dataset.splits.get("validation") for dataset in datasets]
        self.held_out = [s for s in held_out if s and s.tokens > 1 and s.source_bytes]
        self.held_out_tokens = sum(split.tokens for split in self.held_out)
        self.held_out_bytes = sum(split.source_bytes for split in self.held_out)
        self.eot_id = datasets[0].eot_id
        self.read_threads = max(split.read_threads for split in self.splits)

    def tokenizer(self) -> Tokenizer:
        return self.datasets[0].tokenizer()

    def examples(
        self, walk: Walk, step: int, rows: np.ndarray
    ) -> Iterator[tuple[TokenSplit, np.ndarray, np.ndarray, np.ndarray]]:
        """For each set: its split, which of the int64 rows of `step` it has, which of its examples
        they hold, and the first tokens of these.
        """
        chosen, number = walk.draw(step, rows)
        for s, (split, reading) in enumerate(zip(self.splits, walk.sets, strict=True)):
            mine = np.flatnonzero(chosen == s)
            shape = {"sequence_length": walk.sequence_length, "tokens": split.tokens}
            starts = example_starts(number[mine], seed=reading.seed, **shape)
            yield split, mine, number[mine], starts

    def identity(self) -> list[dict[str, str | int]]:
        """What must be the same when a run is resumed."""
        return [
            {
                "path": dataset.path,
                "tokenizer": dataset.info.tokenizer.sha256,
                "vocab_size": dataset.vocab_size,
                "sha256": dataset.fingerprint,
            }
            for dataset in self.datasets
        ]

    def fingerprints(self) -> list[str]:
        return [dataset.fingerprint for dataset in self.datasets]

    def proportions(self, walk: Walk, step: int) -> str:
        """A line for each set: how many examples before `step` came from it."""
        taken, lines = walk.taken(step), []
        for split, drawn in zip(self.splits, taken, strict=True):
            epochs = drawn / examples_per_epoch(split.tokens, walk.sequence_length)
            share = drawn / max(sum(taken), 1)
            lines.append(f"{share:7.2%}  {drawn:,} examples, {epochs:.2f} epochs of {split.path}")
        return "\n".join(lines)


def open_data(config: DataConfig, folder: Path, vocab_size: int) -> TrainingData:
    """The set at `config.path`, the mixture of `config.sources`, or the set that was made of
    `config.text` in `folder`.

    Raises ConfigError if ids do not fit `vocab_size`, the model's, or sets do not fit each other.
    """
    sources = config.sources or ((folder if config.text else config.path, 1),)
    for _, weights in config.stages:
        cycle_counts(weights)
    datasets = [TokenDataset.open(path) for path, _ in sources]
    first = datasets[0].info.tokenizer
    for dataset in datasets:
        tokenizer = dataset.info.tokenizer
        check_vocabulary(tokenizer.name, dataset.vocab_size, vocab_size)
        problem = ""
        if "train" not in dataset.splits:
            problem = "has no split 'train'"
        elif tokenizer.sha256 != first.sha256:
            problem = (
                f"has tokenizer {tokenizer.name}, SHA-256 {tokenizer.sha256}, but "
                f"{datasets[0].path} has {first.name}, {first.sha256}"
            )
        if problem:
            raise ConfigError([problem], f"token dataset {dataset.path}")
    return TrainingData(datasets)


def check_vocabulary(name: str, needed: int, vocab_size: int) -> None:
    """Raises ConfigError if tokenizer `name`, of `needed` ids, has more than the model."""
    if needed > vocab_size:
        constraint = f"is smaller than the {needed} ids of tokenizer {name}"
        remedy = f"set it to at least {needed}; {-(-needed // 128) * 128} divides well"
        raise ConfigError([Problem("model.vocab_size", vocab_size, constraint, remedy)])


class Batch(NamedTuple):
    """Rows of a batch: tokens int32 [B, T + 1]; for validation, `mask` float32 [B, T], 1 for each
    target that counts; if documents are masked, `segments` int32 [B, T + 1], the number of each
    token's document within its row.
    """

    tokens: np.ndarray
    mask: np.ndarray | None = None
    segments: np.ndarray | None = None


def train_batches(
    data: TrainingData,
    config: Config,
    rows: np.ndarray,
    start: int = 0,
    walk: Walk | None = None,
) -> Generator[Batch, None, None]:
    """The rows numbered `rows` of each batch from step `start` to the last.

    By `walk`, or by that of a run that begins at step 0.
    """
    by = walk or first_walk(config, data.fingerprints())
    length = config.data.sequence_length
    for split in data.splits:
        if examples_per_epoch(split.tokens, length) < 1:
            problem = (
                f"split {split.name!r} holds {split.tokens:,} tokens, but "
                f"data.sequence_length={length} needs at least {2 * length:,}"
            )
            raise ConfigError([problem], f"token dataset {split.path}")

    def batch(step: int) -> Batch:
        tokens = np.empty((len(rows), length + 1), np.int32)
        for split, mine, _, starts in data.examples(by, step, rows.astype(np.int64)):
            tokens[mine] = split.read(starts, length + 1)
        masked = config.data.mask_documents
        return Batch(tokens, segments=segments(tokens, data.eot_id) if masked else None)

    return _read_ahead(batch, range(start, config.optim.steps), data.read_threads)


def held_out_batches(
    data: TrainingData, config: Config, rows: np.ndarray
) -> dict[str, Generator[Batch, None, None]]:
    """`validation_batches` of every set that has text to validate on, by the name of its folder, or
    its path where two have the same.
    """
    paths = [split.path for split in data.held_out]
    names = [Path(path).name for path in paths]
    names = names if len({*names}) == len(names) else paths
    splits = zip(names, data.held_out, strict=True)
    return {name: validation_batches(split, config, rows) for name, split in splits}


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
        starts = (i * total // count * batch_size + rows) * length
        found = np.clip(split.tokens - starts, 0, length + 1)  # tokens from each start
        tokens = np.zeros((len(rows), length + 1), np.int32)
        for n in np.unique(found[found > 1]):  # the last of the split is shorter
            tokens[found == n, :n] = split.read(starts[found == n], n)
        mask = (np.arange(1, length + 1) < found[:, None]).astype(np.float32)
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


def _read_ahead(
    batch: Callable[[int], Batch], numbers: range, threads: int
) -> Generator[Batch, None, None]:
    import grain  # late: it imports JAX, which tokenising workers must not

    dataset = grain.MapDataset.range(numbers.start, numbers.stop).map(batch)
    iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(threads, READ_AHEAD)))
    try:
        yield from iterator
    finally:
        iterator.close()  # cancels the queue; its threads end with the current batch
