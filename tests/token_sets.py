"""Small token datasets with many shards, so that every boundary is met."""

import numpy as np
import pytest

from gpt_pjit.core.tokens import BytesTokenizer, TokenDataset
from gpt_pjit.data import DatasetWriter, writer as writer_module


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(writer_module, "CHUNK", 16)
    monkeypatch.setattr(writer_module, "SHARD", 64)


@pytest.fixture
def make_set(tmp_path, small_shards):
    """`make_set(tokens, validation_tokens)` writes three random documents to each split, and
    returns (dataset, arrays).
    """

    def make(*sizes: int, tokenizer=None):
        random = np.random.default_rng(sum(sizes))
        names = ("train", "validation")
        arrays = {
            name: random.integers(0, 256, size) for name, size in zip(names, sizes, strict=True)
        }
        path = tmp_path / f"set-{'-'.join(map(str, sizes))}"
        with DatasetWriter(path, tokenizer or BytesTokenizer()) as writer:
            for name, tokens in arrays.items():
                ends = np.cumsum([len(part) for part in np.array_split(tokens, 3)])
                tokens[ends[ends > 0] - 1] = 256
                writer.splits[name].append(tokens, ends, len(tokens))
        return TokenDataset.open(path), arrays

    return make
