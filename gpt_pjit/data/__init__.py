"""Text to tokens to batches.

Tokenizers (`tokenizers.py`); the token-dataset format (`schema.py`), its `writer.py` and its reader
(`dataset.py`); text files to such a set (`corpus.py`, `prepare.py`, `progress.py`); which tokens
an example holds, as a pure function of seed, step and row (`index.py`); and batches read ahead
(`stream.py`). Nothing here knows of JAX or of other hosts. docs/token_datasets.md has the format.
"""

from gpt_pjit.data.dataset import TokenDataset, TokenSplit
from gpt_pjit.data.prepare import open_data, prepare
from gpt_pjit.data.stream import train_batches, validation_batches
from gpt_pjit.data.tokenizers import Tokenizer, load_tokenizer, train_bpe
from gpt_pjit.data.writer import DatasetWriter

__all__ = [
    "DatasetWriter",
    "TokenDataset",
    "TokenSplit",
    "Tokenizer",
    "load_tokenizer",
    "open_data",
    "prepare",
    "train_batches",
    "train_bpe",
    "validation_batches",
]
