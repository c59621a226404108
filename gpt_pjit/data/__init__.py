"""A corpus to a token set.

Its files (`corpus.py`), read in items of bounded size (`readers.py`), encoded by workers, in order,
and resumed after a kill (`tokenize.py`), written by `writer.py`; `prepare.py` does all that once,
and trains tokenizers. Many processes can each make a part (`share.py`), which `join.py` puts
together. `show.py` shows tokens as text. Importing it does not import JAX.
"""

from gpt_pjit.data.corpus import Corpus, find_files
from gpt_pjit.data.join import join
from gpt_pjit.data.prepare import prepare, prepare_text, train_bpe, train_unigram
from gpt_pjit.data.share import Share
from gpt_pjit.data.show import BatchTexts
from gpt_pjit.data.tokenize import TokenizeOptions
from gpt_pjit.data.writer import DatasetWriter
