"""Files and folders, local or in a bucket: gs:// or s3://.

A local path is pathlib's. A path in a bucket is a `BucketPath`, which has the same methods, so that
annotations say `Path` for both. `as_path` makes either from text. No JAX here.
"""

from gpt_pjit.core.files.bounded import (
    CLAIMED_FREELY as CLAIMED_FREELY,
    LARGEST_JSON as LARGEST_JSON,
    LARGEST_TOKENIZER as LARGEST_TOKENIZER,
    check_size as check_size,
    read_regular as read_regular,
    regular_files as regular_files,
    size_of_regular as size_of_regular,
)
from gpt_pjit.core.files.buckets import (
    as_path as as_path,
    check_bucket as check_bucket,
    copy_folder as copy_folder,
    files_below as files_below,
    is_remote as is_remote,
    remove_folder as remove_folder,
    tensorstore_spec as tensorstore_spec,
    write_probe as write_probe,
)
from gpt_pjit.core.files.lease import Lease as Lease
from gpt_pjit.core.files.mirror import Mirror as Mirror
from gpt_pjit.core.files.whole import (
    file_errors as file_errors,
    read_json as read_json,
    write_json as write_json,
    write_whole as write_whole,
)
