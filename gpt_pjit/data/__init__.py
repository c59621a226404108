"""A corpus to a token set.

Its files (`corpus.py`), read in items of bounded size (`readers.py`), encoded by workers, in order,
and resumed after a kill (`tokenize.py`), written by `writer.py`; `prepare.py` does all that once,
and trains tokenizers. Importing it does not import JAX.
"""

from gpt_pjit.data.corpus import Corpus as Corpus, find_files as find_files
from gpt_pjit.data.prepare import (
    prepare as prepare,
    prepare_text as prepare_text,
    train_bpe as train_bpe,
    train_unigram as train_unigram,
)
from gpt_pjit.data.tokenize import TokenizeOptions as TokenizeOptions
from gpt_pjit.data.writer import DatasetWriter as DatasetWriter
