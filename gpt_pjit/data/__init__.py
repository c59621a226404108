"""Text to tokens to batches.

The token-dataset format (`schema.py`), written by `writer.py` and `shards.py`, read by `dataset.py`
and `arrays.py`; docs/token_datasets.md describes it. A corpus to such a set: its files
(`corpus.py`), read in pieces (`readers.py`, `documents.py`), encoded by worker processes
(`tokenizers.py`, `engines.py`, `encode.py`, `workers.py`), in order, and going on after a kill
(`tokenize.py`, `prepare.py`). What a run trains on (`sources.py`, `training_data.py`); which tokens
an example holds, as a pure function of seed, step and row (`index.py`, `mixture.py`); batches read
ahead (`stream.py`). Nothing here knows of JAX or of other hosts. `python -m gpt_pjit.data` is its
command line.
"""

from gpt_pjit.data.dataset import TokenDataset, TokenSplit
from gpt_pjit.data.prepare import prepare
from gpt_pjit.data.sources import open_data
from gpt_pjit.data.stream import Batch, held_out_batches, train_batches, validation_batches
from gpt_pjit.data.tokenize import Effort
from gpt_pjit.data.tokenizers import (
    END_OF_TEXT,
    BytesTokenizer,
    Tokenizer,
    load_tokenizer,
    saved_tokenizer,
    tokenizer_from_bytes,
    train_bpe,
    train_unigram,
)
from gpt_pjit.data.training_data import TrainingData
from gpt_pjit.data.writer import DatasetWriter

__all__ = [
    "END_OF_TEXT",
    "Batch",
    "BytesTokenizer",
    "DatasetWriter",
    "Effort",
    "TokenDataset",
    "TokenSplit",
    "Tokenizer",
    "TrainingData",
    "held_out_batches",
    "load_tokenizer",
    "open_data",
    "prepare",
    "saved_tokenizer",
    "tokenizer_from_bytes",
    "train_batches",
    "train_bpe",
    "train_unigram",
    "validation_batches",
]
