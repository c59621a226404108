"""Reading a token dataset from a folder or an object store: any tokens at any offset.

TensorStore reads both, and checks the checksum of every chunk and every index that it reads.
"""

import functools
import hashlib
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import tensorstore

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.files import (
    CLAIMED_FREELY,
    LARGEST_JSON,
    LARGEST_TOKENIZER,
    check_size,
    regular_files,
    size_of_regular,
    tensorstore_spec,
)
from gpt_pjit.core.tokens.format import MANIFEST, DatasetInfo, SplitInfo, array_metadata
from gpt_pjit.core.tokens.tokenizers import BytesTokenizer, Tokenizer, tokenizer_from_bytes

# The cache holds the shard indexes of a set of 9B tokens, so that a read is one request, not two.
CONTEXT = tensorstore.Context({"cache_pool": {"total_bytes_limit": 2**27}})
MOST_PROBLEMS = 20  # that are listed
# A failing network is worth a retry; every other status means that the data are damaged.
TRANSIENT = ("ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNAVAILABLE")


class DamageError(ValueError):
    """Data that are missing or differ from what was written; names the file."""


class TokenDataset:
    """An open set: its `info`, its `splits` by name, and its tokenizer."""

    def __init__(self, path: str, info: DatasetInfo, splits: "dict[str, TokenSplit]"):
        self.path, self.info, self.splits = path, info, splits
        self.vocab_size, self.eot_id = info.vocab_size, info.eot_id
        self.fingerprint = info.fingerprint

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Opens the set in a folder or below a gs:// or s3:// URL; reads only metadata."""
        path = str(path)
        sizes = _file_sizes(path)
        data = _read_file(path, MANIFEST)
        if data is None:
            problem = f"has no {MANIFEST}, so it is not a token dataset; check the path"
            if _read_file(path, "train/tokens/zarr.json") is not None:
                problem = f"holds tokens but no {MANIFEST}: writing or copying it was interrupted"
            raise ConfigError([problem], f"token dataset {path}")
        info = DatasetInfo.from_json(data, path)
        splits = {name: TokenSplit(path, name, split, info) for name, split in info.splits.items()}
        if sizes is not None:
            for name, split in info.splits.items():
                _check_plausible(path, name, split, sizes)
        return cls(path, info, splits)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer from the copy of its file that the set holds."""
        info = self.info.tokenizer
        if not info.file:
            return BytesTokenizer()
        content = _read_file(self.path, info.file, LARGEST_TOKENIZER)
        if content is None or hashlib.sha256(content).hexdigest() != info.sha256:
            problem = f"{info.file}, of tokenizer {info.name!r}, is missing or damaged"
            raise ConfigError([problem], f"token dataset {self.path}")
        return tokenizer_from_bytes(info.name, content)

    def verify(self) -> None:
        """Reads everything; raises ConfigError that lists all damage."""
        problems = [problem for split in self.splits.values() for problem in split.verify()]
        try:
            self.tokenizer()
        except ConfigError as error:
            problems += map(str, error.problems)
        if problems:
            raise ConfigError(problems, f"token dataset {self.path}")


class TokenSplit:
    """One split: `tokens`, `documents` and `source_bytes` are its sizes, `read` its tokens."""

    def __init__(self, path: str, name: str, info: SplitInfo, dataset: DatasetInfo):
        self.path, self.name, self.info = path, name, info
        self.tokens, self.documents = info.tokens, info.documents
        self.source_bytes, self.eot_id = info.source_bytes, dataset.eot_id
        self.vocab_size = dataset.vocab_size
        self.read_threads = 8 if "://" in path else 1  # most wait for the network
        with self._naming("tokens"):
            metadata = array_metadata(dataset.dtype, self.tokens)
            self._tokens = open_array(self._array_spec("tokens"), metadata)

    def read(self, starts: np.ndarray, length: int) -> np.ndarray:
        """int32 [len(starts), length] tokens from each start on."""
        with self._naming("tokens"):
            found = read_ranges(self._tokens, starts.tolist(), length, np.int32)
            self._check_ids(found)
            return found

    def document_offsets(self, start: int, stop: int) -> np.ndarray:
        """uint64 offsets `start` to `stop`: document i is the tokens from offset i to i + 1."""
        with self._naming("document offsets"):
            found = read_ranges(self._documents, [start], stop - start)[0]
            self._check_offsets(found)
            return found

    def document_at(self, token: int) -> int:
        """The document that holds a token: a binary search in the stored offsets."""
        starts = range(1, self.documents)
        return bisect_right(starts, token, key=lambda i: int(self.document_offsets(i, i + 1)[0]))

    def verify(self) -> list[str]:
        """Reads the whole split; returns all damage, with its place."""
        problems: list[str] = []
        digest = hashlib.sha256()
        for array, what, check in (
            (self._tokens, "tokens", self._check_ids),
            (self._documents, "documents", self._check_offsets),
        ):
            for start, stop in shard_bounds(array):
                try:
                    values = read_ranges(array, [start], stop - start)
                    digest.update(values.data)
                    check(values)
                except DamageError as damage:
                    problems.append(f"{what} {start} to {stop}: {damage}")
                if len(problems) >= MOST_PROBLEMS:
                    break
        if not problems and digest.hexdigest() != self.info.sha256:
            problems.append(f"the content hash is {digest.hexdigest()}, not {self.info.sha256}")
        return [f"split {self.name!r}: {problem}" for problem in problems]

    def _check_ids(self, ids: np.ndarray) -> None:
        """Their checksums may be right: an embedding takes any id, and trains on silently."""
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            wrong = ids.min() if ids.min() < 0 else ids.max()  # uint32 read as int32
            raise DamageError(f"id {wrong} is outside the vocabulary of {self.vocab_size} ids")

    def _check_offsets(self, offsets: np.ndarray) -> None:
        flat = offsets.ravel()
        if flat.size and ((flat[1:] < flat[:-1]).any() or flat[-1] > self.tokens):
            raise DamageError(f"they decrease, or pass the end, {self.tokens}")

    @functools.cached_property
    def _documents(self) -> tensorstore.TensorStore:
        with self._naming("document offsets"):
            metadata = array_metadata("uint64", self.documents + 1)
            return open_array(self._array_spec("documents"), metadata)

    def _array_spec(self, name: str) -> Any:
        return tensorstore_spec(f"{self.path.rstrip('/')}/{self.name}/{name}")

    @contextmanager
    def _naming(self, what: str) -> Iterator[None]:
        """Turns damage into a ConfigError that names the split."""
        try:
            yield
        except DamageError as damage:
            problem = f"{what} of split {self.name!r} cannot be read: {damage}"
            raise ConfigError([problem], f"token dataset {self.path}") from None


def _file_sizes(root: str) -> dict[Path, int] | None:
    """The bytes of each file of a local set; ConfigError where one cannot be read safely."""
    if "://" in root:
        return None
    sizes = regular_files(Path(root).expanduser())
    for path, size in sizes.items():
        if path.name == "zarr.json":
            check_size(path, size, LARGEST_JSON)
    return sizes


def _check_plausible(root: str, name: str, split: SplitInfo, sizes: dict[Path, int]) -> None:
    """Raises ConfigError if a split claims far more than its files hold: nothing is compressed."""
    folder = Path(root).expanduser() / name
    held = sum(size for path, size in sizes.items() if path.is_relative_to(folder))
    claimed = 2 * split.tokens + 8 * split.documents
    if claimed > held + CLAIMED_FREELY:
        problem = f"split {name!r} claims {claimed:,} bytes, but holds {held:,}"
        raise ConfigError([problem], f"token dataset {root}")


def open_array(kvstore: Any, metadata: dict[str, Any]) -> tensorstore.TensorStore:
    """Opens an array by its metadata alone; raises DamageError if they differ, or OSError."""
    spec = {
        "driver": "zarr3",
        "kvstore": kvstore,
        "metadata": metadata,
        "fill_missing_data_reads": False,
        "recheck_cached_data": "open",
    }
    try:
        return tensorstore.open(spec, context=CONTEXT, open=True, read=True).result()
    except ValueError as error:
        raise _failure(error) from None


def read_ranges(
    array: tensorstore.TensorStore, starts: Sequence[int], length: int, dtype: Any = None
) -> np.ndarray:
    """[len(starts), length] values from each start on, all read together; raises DamageError."""
    try:
        values = np.empty((len(starts), length), dtype or array.dtype.numpy_dtype)
        with tensorstore.Batch() as batch:
            futures = [array[start : start + length].read(batch=batch) for start in starts]
        for row, future in zip(values, futures, strict=True):
            row[:] = future.result()
    except ValueError as error:
        raise _failure(error) from None
    except MemoryError:
        raise DamageError(f"{length:,} values are more than fit into memory") from None
    return values


def shard_bounds(array: tensorstore.TensorStore) -> list[tuple[int, int]]:
    """The first value of each shard, and the one after its last."""
    (length,) = array.shape
    (shard,) = array.chunk_layout.write_chunk_template.shape
    return [(start, min(start + shard, length)) for start in range(0, length, shard)]


def first_line(error: ValueError) -> str:
    """TensorStore's message, without the specification that follows it."""
    return re.sub(r" \[\w+=.*", "", str(error), flags=re.DOTALL)


def _failure(error: ValueError) -> Exception:
    reason = first_line(error)
    return OSError(reason) if reason.startswith(TRANSIENT) else DamageError(reason)


def _read_file(root: str, name: str, most: int = LARGEST_JSON) -> bytes | None:
    """The content of a file of a set, None if there is none."""
    path = Path(root).expanduser() / name
    if "://" not in root and path.exists():
        check_size(path, size_of_regular(path), most)
    try:
        store = tensorstore.KvStore.open(tensorstore_spec(root)).result()
        result = store.read(name).result()
    except ValueError as error:
        problem = f"{name} cannot be read: {_failure(error)}"
        raise ConfigError([problem], f"token dataset {root}") from None
    return result.value if result.state == "value" else None
