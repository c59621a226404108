"""Reading token sets: which tokens an example holds, and the stream of batches.

`format.py` and `dataset.py` read sets (docs/token_datasets.md); examples are a pure function of
seed, step and row (`index.py`), also where a run changes what it reads (`walk.py`); `stream.py`
opens what a run trains on, and reads batches ahead.
Importing it does not import JAX.
"""

from gpt_pjit.core.tokens.dataset import (
    TokenDataset as TokenDataset,
    TokenSplit as TokenSplit,
    first_line as first_line,
    open_array as open_array,
    read_windows as read_windows,
    shard_bounds as shard_bounds,
)
from gpt_pjit.core.tokens.format import (
    MANIFEST as MANIFEST,
    SPLITS as SPLITS,
    DatasetInfo as DatasetInfo,
    SplitInfo as SplitInfo,
    TokenizerInfo as TokenizerInfo,
    array_metadata as array_metadata,
)
from gpt_pjit.core.tokens.stream import (
    Batch as Batch,
    TrainingData as TrainingData,
    check_vocabulary as check_vocabulary,
    held_out_batches as held_out_batches,
    open_data as open_data,
    train_batches as train_batches,
    validation_batches as validation_batches,
)
from gpt_pjit.core.tokens.tokenizers import (
    END_OF_TEXT as END_OF_TEXT,
    ENDS as ENDS,
    BytesTokenizer as BytesTokenizer,
    HuggingFaceTokenizer as HuggingFaceTokenizer,
    Tokenizer as Tokenizer,
    load_tokenizer as load_tokenizer,
    saved_tokenizer as saved_tokenizer,
    tokenizer_from_bytes as tokenizer_from_bytes,
)
from gpt_pjit.core.tokens.walk import (
    Walk as Walk,
    first_walk as first_walk,
    tokens_before as tokens_before,
    walk_to_json as walk_to_json,
    walks_of as walks_of,
    walks_on as walks_on,
)
