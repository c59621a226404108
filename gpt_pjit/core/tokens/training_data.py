"""What a run trains and validates on: one set, or several in a mixture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from gpt_pjit.core.tokens.dataset import TokenDataset, TokenSplit
from gpt_pjit.core.tokens.index import hash64, window_starts, windows
from gpt_pjit.core.tokens.mixture import Schedule
from gpt_pjit.core.tokens.tokenizers import Tokenizer


class TrainingData:
    """One or more sets of one tokenizer; `splits` are their training splits."""

    def __init__(self, datasets: Sequence[TokenDataset], weights: Sequence[float] = (1,)):
        self.datasets, self._schedule = list(datasets), Schedule(weights)
        self.splits = [dataset.splits["train"] for dataset in datasets]
        self.held_out = [dataset.splits["validation"] for dataset in datasets]
        self.held_out_tokens = sum(split.tokens for split in self.held_out)
        self.held_out_bytes = sum(split.source_bytes for split in self.held_out)
        self.eot_id = datasets[0].eot_id
        self.read_threads = max(split.read_threads for split in self.splits)

    def tokenizer(self) -> Tokenizer:
        return self.datasets[0].tokenizer()

    def windows(
        self, example: np.ndarray, seed: int, sequence_length: int
    ) -> Iterator[tuple[TokenSplit, np.ndarray, np.ndarray]]:
        """For each source (its split, which of the int64 examples it has, their first tokens)."""
        source, number = self._schedule.draw(example)
        for s, split in enumerate(self.splits):
            mine = np.flatnonzero(source == s)
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
        """What a run that goes on must find again."""
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
        """What the first `examples` of a run were drawn from, in words, a line a source."""
        lines = []
        for split, drawn in zip(self.splits, self._schedule.drawn(examples), strict=True):
            epochs = drawn / windows(split.tokens, sequence_length)
            share = drawn / max(examples, 1)
            lines.append(f"{share:7.2%}  {drawn:,} examples, {epochs:.2f} epochs of {split.path}")
        return "\n".join(lines)
