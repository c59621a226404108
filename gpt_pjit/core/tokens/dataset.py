"""Reading a token dataset from a folder or an object store: any window at any offset.

TensorStore reads both, and checks the checksum of every chunk and every index that it reads.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens.format import MANIFEST, DatasetInfo, SplitInfo, array_metadata
from gpt_pjit.core.tokens.tokenizers import BytesTokenizer, Tokenizer, tokenizer_from_bytes

# The cache holds the shard indexes of a set of 9B tokens, so that a read is one request, not two.
CONTEXT = tensorstore.Context({"cache_pool": {"total_bytes_limit": 2**27}})
# A failing network is worth a retry; every other status means that the data are damaged.
TRANSIENT = ("ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNAVAILABLE")


class DamageError(ValueError):
    """Data that are missing or differ from what was written; names the file."""


class TokenDataset:
    """An open set: its `info`, its `splits` by name, and its tokenizer."""

    def __init__(self, path: str, info: DatasetInfo, splits: dict[str, TokenSplit]):
        self.path, self.info, self.splits = path, info, splits
        self.vocab_size, self.eot_id = info.vocab_size, info.eot_id
        self.fingerprint = info.fingerprint

    @classmethod
    def open(cls, path: str | Path) -> TokenDataset:
        """Opens the set in a folder or below a gs:// or s3:// URL; reads only metadata."""
        path = str(path)
        _check_files(path)
        data = _read_file(path, MANIFEST)
        if data is None:
            problem = f"has no {MANIFEST}, so it is not a token dataset; check the path"
            if _read_file(path, "train/tokens/zarr.json") is not None:
                problem = f"holds tokens but no {MANIFEST}: writing or copying it was interrupted"
            raise ConfigError([problem], f"token dataset {path}")
        info = DatasetInfo.from_json(data, path)
        splits = {name: TokenSplit(path, name, split, info) for name, split in info.splits.items()}
        return cls(path, info, splits)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer from the copy of its file that the set holds."""
        info = self.info.tokenizer
        if not info.file:
            return BytesTokenizer()
        content = _read_file(self.path, info.file)
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
            self._tokens = open_array(location(path, name, "tokens"), metadata)

    def read(self, starts: np.ndarray, length: int) -> np.ndarray:
        """int32 [len(starts), length] tokens from each start on."""
        with self._naming("tokens"):
            found = read_windows(self._tokens, starts.tolist(), length, np.int32)
            # Their checksums may be right: an embedding takes any id, and trains on silently.
            if found.size and (wrong := int(found.max())) >= self.vocab_size:
                raise DamageError(f"id {wrong} is above the vocabulary of {self.vocab_size} ids")
            return found

    def document_offsets(self, start: int, stop: int) -> np.ndarray:
        """uint64 offsets `start` to `stop`: document i is the tokens from offset i to i + 1."""
        with self._naming("document offsets"):
            return read_windows(self._documents, [start], stop - start)[0]

    def document_at(self, token: int) -> int:
        """The document that holds a token: a binary search in the stored offsets."""
        starts = range(1, self.documents)
        return bisect_right(starts, token, key=lambda i: int(self.document_offsets(i, i + 1)[0]))

    def verify(self) -> list[str]:
        """Reads the whole split; returns all damage, with its place."""
        problems: list[str] = []
        digest = hashlib.sha256()
        for array, what in ((self._tokens, "tokens"), (self._documents, "documents")):
            for start, stop in shard_bounds(array):
                try:
                    digest.update(read_windows(array, [start], stop - start).data)
                except DamageError as damage:
                    problems.append(f"{what} {start} to {stop}: {damage}")
        if not problems and digest.hexdigest() != self.info.sha256:
            problems.append(f"the content hash is {digest.hexdigest()}, not {self.info.sha256}")
        return [f"split {self.name!r}: {problem}" for problem in problems]

    @functools.cached_property
    def _documents(self) -> tensorstore.TensorStore:
        with self._naming("document offsets"):
            metadata = array_metadata("uint64", self.documents + 1)
            return open_array(location(self.path, self.name, "documents"), metadata)

    @contextmanager
    def _naming(self, what: str) -> Iterator[None]:
        """Turns damage into a ConfigError that names the split."""
        try:
            yield
        except DamageError as damage:
            problem = f"{what} of split {self.name!r} cannot be read: {damage}"
            raise ConfigError([problem], f"token dataset {self.path}") from None


def _check_files(root: str) -> None:
    """Raises ConfigError for a pipe or a device in a local set: reading it would never end."""
    if "://" not in root:
        for path in Path(root).expanduser().rglob("*"):
            if not (path.is_file() or path.is_dir()):
                raise ConfigError([f"{path} is not a regular file"], f"token dataset {root}")


def location(root: str, *folders: str) -> Any:
    """What TensorStore calls a folder of a set that is local or below a URL."""
    if "://" not in root:
        path = os.path.abspath(os.path.expanduser(root))
        return {"driver": "file", "path": "/".join([path, *folders, ""])}
    url = "/".join([root.rstrip("/"), *folders, ""])
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if not url.startswith("s3://") or not endpoint:
        return url
    # For stores that speak S3 but are not Amazon's; Amazon's own clients read this variable too.
    bucket, _, path = url.removeprefix("s3://").partition("/")
    region = os.environ.get("AWS_REGION", "us-east-1")
    where = {"endpoint": endpoint, "aws_region": region}
    return {"driver": "s3", "bucket": bucket, "path": path, **where}


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


def read_windows(
    array: tensorstore.TensorStore, starts: Sequence[int], length: int, dtype: Any = None
) -> np.ndarray:
    """[len(starts), length] values from each start on, all read together; raises DamageError."""
    values = np.empty((len(starts), length), dtype or array.dtype.numpy_dtype)
    try:
        with tensorstore.Batch() as batch:
            futures = [array[start : start + length].read(batch=batch) for start in starts]
        for row, future in zip(values, futures, strict=True):
            row[:] = future.result()
    except ValueError as error:
        raise _failure(error) from None
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


def _read_file(root: str, name: str) -> bytes | None:
    """The content of a file of a set, None if there is none."""
    try:
        store = tensorstore.KvStore.open(location(root)).result()
        result = store.read(name).result()
    except ValueError as error:
        problem = f"{name} cannot be read: {_failure(error)}"
        raise ConfigError([problem], f"token dataset {root}") from None
    return result.value if result.state == "value" else None
