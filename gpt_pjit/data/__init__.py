"""A corpus to a token set.

Its files (`corpus.py`), read in pieces (`readers.py`, `documents.py`), encoded by worker processes
(`engines.py`, `encode.py`, `workers.py`), in order, and going on after a kill (`tokenize.py`,
`prepare.py`), written by `writer.py` and `shards.py`. `python -m gpt_pjit.data` is the command
line.
"""

from gpt_pjit.data.prepare import prepare as prepare, prepare_text as prepare_text
from gpt_pjit.data.tokenize import Effort as Effort
from gpt_pjit.data.train_tokenizer import train_bpe as train_bpe, train_unigram as train_unigram
from gpt_pjit.data.writer import DatasetWriter as DatasetWriter
