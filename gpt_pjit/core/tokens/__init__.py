"""Reading token sets: which tokens an example holds, and the stream of batches.

`format.py` and `dataset.py` read sets (docs/token_datasets.md); examples are a pure function of
seed, step and row (`index.py`), also where a run changes what it reads (`walk.py`); `stream.py`
opens what a run trains on, and reads batches ahead.
Importing it does not import JAX.
"""

from gpt_pjit.core.tokens.dataset import (
    TokenDataset,
    TokenSplit,
    first_line,
    open_array,
    read_ranges,
    shard_bounds,
)
from gpt_pjit.core.tokens.format import (
    MANIFEST,
    SPLITS,
    DatasetInfo,
    SplitInfo,
    TokenizerInfo,
    array_metadata,
)
from gpt_pjit.core.tokens.stream import (
    TrainingData,
    check_vocabulary,
    held_out_batches,
    open_data,
    train_batches,
    validation_batches,
)
from gpt_pjit.core.tokens.tokenizers import (
    END_OF_TEXT,
    ENDS,
    BytesTokenizer,
    HuggingFaceTokenizer,
    Tokenizer,
    load_tokenizer,
    saved_tokenizer,
    tokenizer_from_bytes,
)
from gpt_pjit.core.tokens.walk import (
    Walk,
    first_walk,
    tokens_before,
    walk_to_json,
    walks_of,
    walks_on,
)
