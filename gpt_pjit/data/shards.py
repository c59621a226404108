"""Writing an array of a set shard by shard, each file onto the disk before the next is begun."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import google_crc32c
import numpy as np

from gpt_pjit.core.tokens import LocalArray, schema


class ArrayWriter:
    """Appends to an array shard by shard."""

    def __init__(self, folder: Path, dtype: str, state: dict[str, np.ndarray]):
        self._folder, self._dtype = folder, dtype
        self._name = f"{folder.parent.name} {folder.name}"
        self._buffer = np.empty(schema.SHARD, np.dtype(dtype).newbyteorder("<"))
        rest = state.get(f"{self._name} rest", self._buffer[:0])
        self._filled = len(rest)
        self._buffer[: self._filled] = rest
        self._shards = int(state.get(f"{self._name} shards", 0))

    @property
    def length(self) -> int:
        return self._shards * schema.SHARD + self._filled

    def append(self, values: np.ndarray) -> None:
        while len(values):
            part = values[: schema.SHARD - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            values = values[len(part) :]
            if self._filled == schema.SHARD:
                self._write_shard()
                self._shards, self._filled = self._shards + 1, 0

    def state(self) -> dict[str, np.ndarray]:
        rest = self._buffer[: self._filled]
        return {f"{self._name} rest": rest, f"{self._name} shards": np.array(self._shards)}

    def finish(self, digest: hashlib._Hash) -> None:
        """Writes the last shard and the metadata; hashes the values as they are on the disk."""
        if self._filled:
            self._write_shard()
        metadata = schema.array_metadata(self._dtype, self.length, schema.SHARD, schema.CHUNK)
        write_file(self._folder / "zarr.json", json.dumps(metadata).encode())
        written = LocalArray(self._folder, self._dtype)
        for start in range(0, self.length, schema.SHARD):
            values = np.empty((1, min(schema.SHARD, self.length - start)), self._buffer.dtype)
            written.read([start], values)
            digest.update(values.data)

    def _write_shard(self) -> None:
        """Chunks, each followed by its crc32c, and an index of them with its own."""
        content, index = [], np.full((schema.SHARD // schema.CHUNK, 2), schema.MISSING, "<u8")
        size = schema.CHUNK * self._buffer.itemsize + schema.CHECKSUM
        self._buffer[self._filled : -(-self._filled // schema.CHUNK) * schema.CHUNK] = 0
        for number, start in enumerate(range(0, self._filled, schema.CHUNK)):
            content.append(_with_checksum(self._buffer[start : start + schema.CHUNK].tobytes()))
            index[number] = number * size, size
        content.append(_with_checksum(index.tobytes()))
        write_file(self._folder / "c" / str(self._shards), b"".join(content))


def _with_checksum(content: bytes) -> bytes:
    return content + google_crc32c.value(content).to_bytes(schema.CHECKSUM, "little")


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Writes a file onto the disk, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    with open(new, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
