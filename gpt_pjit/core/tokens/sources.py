"""Opening what a config says to train on."""

from __future__ import annotations

from pathlib import Path

from gpt_pjit.config import DataConfig
from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.core.tokens.dataset import TokenDataset
from gpt_pjit.core.tokens.mixture import cycle_counts
from gpt_pjit.core.tokens.schema import SPLITS
from gpt_pjit.core.tokens.training_data import TrainingData


def open_data(config: DataConfig, folder: Path, vocab_size: int) -> TrainingData:
    """The set at `config.path`, the mixture of `config.sources`, or the set of `config.text`, made
    in `folder` before.

    Raises ConfigError if ids do not fit `vocab_size`, the model's, or sets do not fit each other.
    """
    if config.sources:
        paths, weights = zip(*config.sources, strict=True)
        _check_weights(weights)
        data = TrainingData([_open(path, vocab_size) for path in paths], weights)
        _check_one_tokenizer(data)
        return data
    return TrainingData([_open(folder if config.text else config.path, vocab_size)])


def _check_weights(weights: tuple[float, ...]) -> None:
    try:
        cycle_counts(weights)
    except ValueError as error:
        remedy = "round them, for example to 0.7 and 0.3"
        raise ConfigError([f"weights {weights} {error}; {remedy}"], "data.sources") from None


def _open(path: Path | str, vocab_size: int) -> TokenDataset:
    dataset = TokenDataset.open(path)
    check_vocabulary(dataset.info.tokenizer.name, dataset.vocab_size, vocab_size)
    if not dataset.splits.keys() >= set(SPLITS):
        problem = f"expected splits {', '.join(SPLITS)}, got {', '.join(dataset.splits) or 'none'}"
        raise ConfigError([problem + "; write it with both"], f"token dataset {dataset.path}")
    return dataset


def _check_one_tokenizer(data: TrainingData) -> None:
    first, *others = data.datasets
    problems = [
        f"{other.path} has tokenizer {other.info.tokenizer.name}, SHA-256 "
        f"{other.info.tokenizer.sha256}; {first.path} has {first.info.tokenizer.name}, "
        f"{first.info.tokenizer.sha256}; tokenise both with the same"
        for other in others
        if other.info.tokenizer.sha256 != first.info.tokenizer.sha256
    ]
    if problems:
        raise ConfigError(problems, "data.sources")


def check_vocabulary(name: str, needed: int, vocab_size: int) -> None:
    if needed > vocab_size:
        constraint = f"is smaller than the {needed} ids of tokenizer {name}"
        remedy = f"set it to at least {needed}; {-(-needed // 128) * 128} divides well"
        raise ConfigError([Problem("model.vocab_size", vocab_size, constraint, remedy)])
