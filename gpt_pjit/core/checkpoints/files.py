"""The files of a saved step, checked before Orbax reads them: they may come from anywhere."""

from pathlib import Path
from typing import Any

import tensorstore

from gpt_pjit.core.files import (
    CLAIMED_FREELY,
    LARGEST_JSON,
    check_size,
    files_below,
    is_remote,
    regular_files,
    tensorstore_spec,
)
from gpt_pjit.core.sharding import paths_and_leaves

MOST_COMPRESSED = 1000  # times; zeros are not stored at all, but no model is all zeros


def check_files(folder: Path) -> None:
    """Raises ConfigError unless all are regular, and those that are no arrays are small.

    A bucket has only regular files; Orbax reads those of a bucket whatever their size.
    """
    if is_remote(folder):
        return
    for path, size in regular_files(folder).items():
        if path.parent.name != "d":  # where the arrays are
            check_size(path, size, LARGEST_JSON)


def check_arrays(folder: Path, item: str, target: Any) -> None:
    """Raises LookupError if an array of `target` is missing, ValueError if it is not as described,
    or would take far more memory than its files.
    """
    leaves = dict(paths_and_leaves(target))
    held = sum(size for size, _ in files_below(folder))
    claimed = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values())
    if claimed > MOST_COMPRESSED * held + CLAIMED_FREELY:
        raise ValueError(f"its arrays take {claimed:,} bytes, but its files hold {held:,}")
    store = {"driver": "ocdbt", "base": tensorstore_spec(str((folder / item).resolve()))}
    specs = {
        path: {"driver": "zarr", "kvstore": store | {"path": path.replace("/", ".") + "/"}}
        for path in leaves
    }
    opening = {path: tensorstore.open(spec, open=True, read=True) for path, spec in specs.items()}
    for path, leaf in leaves.items():
        try:
            array = opening[path].result()
        except ValueError as error:
            if not str(error).startswith("NOT_FOUND"):
                raise
            problem = f"it lacks {path} (imported and grown steps hold only params)"
            raise LookupError(problem) from None
        if array.shape != leaf.shape or array.dtype.numpy_dtype != leaf.dtype:
            found, wanted = (f"{a.dtype.name} of shape {a.shape}" for a in (array, leaf))
            raise ValueError(f"{path} is {found}, not {wanted}")
        chunk = array.chunk_layout.read_chunk.shape or ()  # unpacked whole
        if any(part > max(size, 1) for part, size in zip(chunk, leaf.shape, strict=True)):
            raise ValueError(f"a chunk of {path} is larger than the array: {list(chunk)}")
