"""Token sets, read: which tokens an example holds, and the stream of batches.

The format (`schema.py`; docs/token_datasets.md describes it) and its reader (`dataset.py`,
`arrays.py`); tokenizers; what a run trains on (`sources.py`, `training_data.py`); examples as a
pure function of seed, step and row (`index.py`, `mixture.py`); batches read ahead (`stream.py`).
"""

from gpt_pjit.core.tokens.arrays import LocalArray as LocalArray
from gpt_pjit.core.tokens.dataset import TokenDataset as TokenDataset, TokenSplit as TokenSplit
from gpt_pjit.core.tokens.index import hash64 as hash64
from gpt_pjit.core.tokens.schema import (
    SPLITS as SPLITS,
    DatasetInfo as DatasetInfo,
    SplitInfo as SplitInfo,
    TokenizerInfo as TokenizerInfo,
)
from gpt_pjit.core.tokens.sources import (
    check_vocabulary as check_vocabulary,
    open_data as open_data,
)
from gpt_pjit.core.tokens.stream import (
    Batch as Batch,
    held_out_batches as held_out_batches,
    train_batches as train_batches,
    validation_batches as validation_batches,
)
from gpt_pjit.core.tokens.tokenizers import (
    END_OF_TEXT as END_OF_TEXT,
    BytesTokenizer as BytesTokenizer,
    HuggingFaceTokenizer as HuggingFaceTokenizer,
    Tokenizer as Tokenizer,
    load_tokenizer as load_tokenizer,
    saved_tokenizer as saved_tokenizer,
    tokenizer_from_bytes as tokenizer_from_bytes,
)
from gpt_pjit.core.tokens.training_data import TrainingData as TrainingData
