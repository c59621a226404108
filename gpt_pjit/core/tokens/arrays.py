"""Reading the arrays of a set, from a folder or an object store. Every read checks its checksums.

TensorStore reads anything, but one read costs it some 30 us. Local shards are read here with plain
positioned reads: a chunk of 8 KiB takes 2 us, its checksum included.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any, Protocol

import google_crc32c
import numpy as np

from gpt_pjit.core.tokens import schema
from gpt_pjit.core.tokens.schema import CHECKSUM, MISSING

# Holds the shard indexes of a set of 9B tokens, which halves the requests to an object store.
CACHE_BYTES = 2**27
OPEN_FILES = 256  # per array; a process may often have no more than 1,024
# A network that fails is an error to retry; every other status says that the data are damaged.
TRANSIENT = ("ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNAVAILABLE")


class DamageError(ValueError):
    """What cannot be read, or is not what was written; names the file and the byte."""


class Array(Protocol):
    """A one-dimensional array on disk or in a store."""

    length: int
    dtype: np.dtype  # as stored
    step: int  # values that are read at once when all are
    threads: int  # that read best

    def read(self, starts: list[int], out: np.ndarray) -> None:
        """Fills row i of `out` with what is at `starts[i]`; raises DamageError or OSError."""
        ...


def open_array(root: str, split: str, array: str, dtype: str) -> Array:
    """Reads metadata only; raises DamageError if they cannot be those of an array of `dtype`."""
    if is_url(root):
        return StoredArray(_store(root, split, array), dtype)
    return LocalArray(Path(root) / split / array, dtype)


def is_url(root: str) -> bool:
    return "://" in root


def read_file(root: str, name: str) -> bytes | None:
    """The content of a file of a set, None if there is none; raises OSError."""
    if not is_url(root):
        path = Path(root) / name
        return path.read_bytes() if path.exists() else None
    import tensorstore

    try:
        store = tensorstore.KvStore.open(_store(root)).result()
        result = store.read(name).result()
    except ValueError as error:
        raise OSError(str(error).partition(" [")[0]) from None
    return result.value if result.state == "value" else None


def _store(root: str, *folders: str) -> str | dict[str, Any]:
    """What TensorStore opens for a folder below a URL."""
    url = "/".join([root.rstrip("/"), *folders, ""])
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if not url.startswith("s3://") or not endpoint:
        return url
    # Stores that speak S3 but are not Amazon's: the variable that its own clients read.
    bucket, _, path = url.removeprefix("s3://").partition("/")
    region = os.environ.get("AWS_REGION", "us-east-1")
    return {
        "driver": "s3",
        "bucket": bucket,
        "path": path,
        "endpoint": endpoint,
        "aws_region": region,
    }


class LocalArray:
    """An array in a local folder."""

    threads = 1  # each costs the interpreter lock more than it gains

    def __init__(self, folder: Path, dtype: str):
        self._folder = folder
        self.length, shard, self.step = _sizes(folder / "zarr.json", dtype)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._per_shard = shard // self.step
        self._chunk_bytes = self.step * self.dtype.itemsize
        self._indexes: dict[int, np.ndarray] = {}
        self._file = functools.lru_cache(OPEN_FILES)(self._open)

    def read(self, starts: list[int], out: np.ndarray) -> None:
        for row, start in zip(out, starts, strict=True):
            done = 0
            while done < len(row):
                number, within = divmod(start + done, self.step)
                count = min(self.step - within, len(row) - done)
                values = np.frombuffer(self._read_chunk(number), self.dtype)
                row[done : done + count] = values[within : within + count]
                done += count

    def _read_chunk(self, number: int) -> bytes:
        shard, chunk = divmod(number, self._per_shard)
        file = self._file(shard)
        if shard not in self._indexes:
            self._indexes[shard] = self._read_index(file)
        offset, size = self._indexes[shard][chunk].tolist()
        if offset == MISSING or size != self._chunk_bytes + CHECKSUM:
            raise DamageError(f"{file.path} has no chunk {chunk}")
        return file.read(offset, self._chunk_bytes)

    def _read_index(self, file: _File) -> np.ndarray:
        """uint64 [chunks, 2], the offset and size of each chunk of a shard."""
        size = 16 * self._per_shard
        content = file.read(max(file.size - size - CHECKSUM, 0), size)
        return np.frombuffer(content, "<u8").reshape(-1, 2)

    def _open(self, shard: int) -> _File:
        return _File(self._folder / "c" / str(shard))


class StoredArray:
    """An array in an object store, read by TensorStore: all rows at once."""

    threads = 8  # each waits for answers of a network

    def __init__(self, location: str | dict[str, Any], dtype: str):
        import tensorstore  # takes a quarter of a second, which local sets need not wait for

        spec = {"driver": "zarr3", "kvstore": location, "fill_missing_data_reads": False}
        try:
            self._array = tensorstore.open(
                spec, context=_context(), read=True, dtype=dtype, recheck_cached_data=False
            ).result()
        except ValueError as error:
            raise _failure(error) from None
        (self.length,) = self._array.shape
        self.dtype, self.step = np.dtype(dtype).newbyteorder("<"), schema.SHARD

    def read(self, starts: list[int], out: np.ndarray) -> None:
        length = out.shape[1]
        futures = [self._array[start : start + length].read() for start in starts]
        try:
            for row, future in zip(out, futures, strict=True):
                row[:] = future.result()
        except ValueError as error:
            raise _failure(error) from None


class _File:
    """An open file, whose parts are each followed by their crc32c."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise DamageError(f"{path} is missing") from None
        self.size = os.fstat(self._descriptor).st_size

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read(self, offset: int, size: int) -> bytes:
        stored = os.pread(self._descriptor, size + CHECKSUM, offset)
        content = stored[:size]
        if stored[size:] != google_crc32c.value(content).to_bytes(CHECKSUM, "little"):
            raise DamageError(f"{self.path}: the checksum of the {size} bytes at {offset} is wrong")
        return content


@functools.cache
def _context() -> Any:
    import tensorstore

    return tensorstore.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})


def _failure(error: ValueError) -> Exception:
    reason = str(error).partition(" [")[0]
    return OSError(reason) if reason.startswith(TRANSIENT) else DamageError(reason)


def _sizes(metadata: Path, dtype: str) -> tuple[int, int, int]:
    """The length of an array, and of its shards and chunks, from its `zarr.json`."""
    try:
        fields: dict[str, Any] = json.loads(metadata.read_bytes())
        (sharding,) = fields["codecs"]
        (length,) = fields["shape"]
        (shard,) = fields["chunk_grid"]["configuration"]["chunk_shape"]
        (chunk,) = sharding["configuration"]["chunk_shape"]
        expected = schema.array_metadata(dtype, length, shard, chunk)
        different = [name for name in expected if fields[name] != expected[name]]
        if different or shard % chunk:
            raise ValueError(f"unexpected {' and '.join(different) or 'chunk_shape'}")
    except FileNotFoundError:
        raise DamageError(f"{metadata} is missing") from None
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise DamageError(f"{metadata} is not the metadata of a token array: {error!r}") from None
    return length, shard, chunk
