"""Reading a token dataset from a folder or an object store: any window at any offset.

TensorStore reads both, and checks the checksum of every chunk and every index that it reads.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens.format import MANIFEST, DatasetInfo, SplitInfo, array_metadata
from gpt_pjit.core.tokens.tokenizers import BytesTokenizer, Tokenizer, tokenizer_from_bytes

# Enough for the shard indexes of a set of 9B tokens: a read is then one request, not two.
CACHE_BYTES = 2**27
# The network failed, and a retry may help; any other status means damaged data.
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
        data = _read_file(path, MANIFEST)
        if data is None:
            raise _no_manifest(path)
        info = DatasetInfo.from_json(data, path)
        splits = {name: TokenSplit(path, name, split, info) for name, split in info.splits.items()}
        return cls(path, info, splits)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer from the copy of its file that the set holds."""
        info = self.info.tokenizer
        content = _read_file(self.path, info.file) if info.file else BytesTokenizer.content
        found = "is missing" if content is None else hashlib.sha256(content).hexdigest()
        if content is None or found != info.sha256:
            problem = f"{info.file}, of tokenizer {info.name!r}, "
            problem += found if content is None else f"has SHA-256 {found}, not {info.sha256}"
            raise ConfigError([problem], f"token dataset {self.path}")
        return tokenizer_from_bytes(info.name, content) if info.file else BytesTokenizer()

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
        self.read_threads = 8 if "://" in path else 1  # mostly waiting for the network
        self._tokens = self._open("tokens", dataset.dtype, info.tokens)

    def __repr__(self) -> str:
        return f"TokenSplit({self.path}/{self.name}, {self.tokens:,} tokens)"

    def read(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The `length` tokens from each start, int32 [len(starts), length]."""
        result = np.empty((len(starts), length), np.int32)
        self._read(self._tokens, "tokens", starts.tolist(), result)
        return result

    def document_offsets(self, start: int, stop: int) -> np.ndarray:
        """uint64 offsets `start` to `stop`; document i lies between offsets i and i + 1."""
        result = np.empty((1, stop - start), np.uint64)
        self._read(self._documents, "document offsets", [start], result)
        return result[0]

    def document_at(self, token: int) -> int:
        """The document that holds a token: a binary search in the stored offsets."""
        low, high = 0, self.documents
        while high - low > 1:
            middle = (low + high) // 2
            offset = int(self.document_offsets(middle, middle + 1)[0])
            low, high = (middle, high) if offset <= token else (low, middle)
        return low

    def verify(self) -> list[str]:
        """Reads the whole split; returns all damage, with its place."""
        problems: list[str] = []
        digest = hashlib.sha256()
        for array, what in ((self._tokens, "tokens"), (self._documents, "documents")):
            for start, stop in shard_bounds(array):
                values = np.empty((1, stop - start), array.dtype.numpy_dtype)
                try:
                    read_windows(array, [start], values)
                except DamageError as damage:
                    problems.append(f"{what} {start} to {stop}: {damage}")
                digest.update(values.data)
        if not problems and digest.hexdigest() != self.info.sha256:
            problems.append(f"the content hash is {digest.hexdigest()}, not {self.info.sha256}")
        return [f"split {self.name!r}: {problem}" for problem in problems]

    @functools.cached_property
    def _documents(self) -> tensorstore.TensorStore:
        return self._open("documents", "uint64", self.documents + 1)

    def _open(self, name: str, dtype: str, length: int) -> tensorstore.TensorStore:
        try:
            return open_array(location(self.path, self.name, name), array_metadata(dtype, length))
        except DamageError as damage:
            raise self._unreadable(f"array {name!r}", damage) from None

    def _read(
        self, array: tensorstore.TensorStore, what: str, starts: Sequence[int], out: np.ndarray
    ) -> None:
        try:
            read_windows(array, starts, out)
        except DamageError as damage:
            raise self._unreadable(what, damage) from None

    def _unreadable(self, what: str, damage: DamageError) -> ConfigError:
        problem = f"{what} of split {self.name!r} cannot be read: {damage}"
        return ConfigError([problem], f"token dataset {self.path}")


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
        return tensorstore.open(spec, context=_context(), open=True, read=True).result()
    except ValueError as error:
        raise _failure(error) from None


def read_windows(array: tensorstore.TensorStore, starts: Sequence[int], out: np.ndarray) -> None:
    """Fills row i of `out` with the values from `starts[i]` on; all rows are read together."""
    length = out.shape[1]
    try:
        with tensorstore.Batch() as batch:
            futures = [array[start : start + length].read(batch=batch) for start in starts]
        for row, future in zip(out, futures, strict=True):
            row[:] = future.result()
    except ValueError as error:
        raise _failure(error) from None


def shard_bounds(array: tensorstore.TensorStore) -> list[tuple[int, int]]:
    """The first value of each shard, and the one after its last."""
    (length,) = array.shape
    (shard,) = array.chunk_layout.write_chunk_template.shape
    return [(start, min(start + shard, length)) for start in range(0, length, shard)]


@functools.cache
def _context() -> tensorstore.Context:
    return tensorstore.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})


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


def _no_manifest(path: str) -> ConfigError:
    problem = f"has no {MANIFEST}, so it is not a token dataset; check the path"
    if _read_file(path, "train/tokens/zarr.json") is not None:
        problem = f"holds tokens but no {MANIFEST}: writing or copying it was interrupted"
    return ConfigError([problem], f"token dataset {path}")
