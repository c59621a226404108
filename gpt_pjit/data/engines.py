"""Encoding many texts at once: by a tokenizer, or by a faster engine that is checked against it.

The faster engine is fastokens (Apache-2.0, the extra `fast-tokenizer`): it reads the same
`tokenizer.json`, can take special tokens in a text as text, and returns ids without a Python object
for each. tokie (MIT or Apache-2.0) is about as fast, but makes special tokens of such text.
"""

from __future__ import annotations

import random
from importlib.util import find_spec

import numpy as np

from gpt_pjit.core.tokens import HuggingFaceTokenizer, Tokenizer

FIRST_CHECK = 2**17  # characters of the first texts, spread over them
LATER_CHECKS = 1 / 500  # of the texts; at 20 times the cost they take 4 % of the time


class EngineDiffersError(Exception):
    """The faster engine gave other ids than `tokenizers`."""


class Engine:
    """`encode(texts)`: all ids, one text after another, and where each text ends."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids = self._tokenizer.encode_batch(texts)
        return np.concatenate([np.empty(0, np.uint32), *ids]), np.cumsum([len(i) for i in ids])


class FastEngine(Engine):
    """Raises ValueError for a `tokenizer.json` that fastokens cannot read."""

    def __init__(self, tokenizer: Tokenizer):
        import fastokens

        super().__init__(tokenizer)
        self._fast = fastokens.Tokenizer.from_json_str(tokenizer.content.decode())
        self._fast.no_truncation()
        self._random = random.Random()  # noqa: S311
        self._is_first = True

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        flat, offsets = self._fast.encode_batch_flat(texts, split_special_tokens=True)
        ids, ends = np.frombuffer(flat, np.uint32), np.frombuffer(offsets, np.uint64)
        ends = ends.astype(np.int64)
        checked = self._sample(texts)
        for i, expected in zip(
            checked, self._tokenizer.encode_batch([texts[i] for i in checked]), strict=True
        ):
            if not np.array_equal(ids[ends[i] : ends[i + 1]], expected):
                raise EngineDiffersError(f"for the text {texts[i][:60]!r}")
        return ids, ends[1:]

    def _sample(self, texts: list[str]) -> list[int]:
        if not self._is_first:
            return [i for i in range(len(texts)) if self._random.random() < LATER_CHECKS]
        self._is_first, size, sample = False, 0, []
        for i in self._random.sample(range(len(texts)), len(texts)):
            size += len(texts[i])
            sample.append(i)
            if size >= FIRST_CHECK:
                break
        return sample


def has_fast_engine(tokenizer: Tokenizer) -> bool:
    return isinstance(tokenizer, HuggingFaceTokenizer) and bool(find_spec("fastokens"))


def make_engine(tokenizer: Tokenizer, fast: bool) -> Engine:
    """The faster engine if it is wanted and reads this tokenizer."""
    try:
        return FastEngine(tokenizer) if fast else Engine(tokenizer)
    except ValueError:
        return Engine(tokenizer)
