"""Files and folders, local or in a bucket: gs:// or s3://.

A local path is pathlib's. A path in a bucket is a `BucketPath`, which has the same methods, so that
annotations say `Path` for both. `as_path` makes either from text. No JAX here.
"""

from gpt_pjit.core.files.bounded import (
    CLAIMED_FREELY,
    LARGEST_JSON,
    LARGEST_TOKENIZER,
    check_size,
    read_regular,
    regular_files,
    size_of_regular,
)
from gpt_pjit.core.files.buckets import (
    as_path,
    check_bucket,
    copy_folder,
    files_below,
    is_remote,
    remove_folder,
    tensorstore_spec,
    write_probe,
)
from gpt_pjit.core.files.lease import Lease, in_use
from gpt_pjit.core.files.mirror import Mirror
from gpt_pjit.core.files.whole import file_errors, read_json, replace_file, write_json, write_whole
