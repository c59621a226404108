"""Writing a token dataset: streaming, in bounded memory, and whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from array import array
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import tensorstore

from gpt_pjit.data import schema
from gpt_pjit.data.schema import DatasetInfo, SplitInfo, TokenizerInfo
from gpt_pjit.data.tokenizers import Tokenizer


class DatasetWriter:
    """`with DatasetWriter(path, tokenizer) as writer: writer.splits["train"].append(ids, n)`.

    Everything goes to a sibling folder of `path` that is renamed at the end, `dataset.json` last,
    and removed on an error. Raises FileExistsError if `path` holds something.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer):
        self._path, self._tokenizer = path, tokenizer
        self._dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
        self._folder = path.with_name(f"{path.name}.partial-{secrets.token_hex(4)}")
        self.splits: dict[str, SplitWriter] = {}

    def __enter__(self) -> Self:
        if self._path.is_file() or (self._path.is_dir() and any(self._path.iterdir())):
            raise FileExistsError(f"{self._path} exists and is not empty")
        self._folder.mkdir(parents=True)
        for name in schema.SPLITS:
            folder = self._folder / name
            self.splits[name] = SplitWriter(folder, self._dtype, self._tokenizer.vocab_size)
        return self

    def add_file(self, name: str, content: bytes) -> None:
        """Puts a file into the set's folder, and onto the disk."""
        with open(self._folder / name, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._commit()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)  # gone already if it was renamed

    def _commit(self) -> None:
        tokenizer = self._tokenizer
        if tokenizer.file:
            self.add_file(tokenizer.file, tokenizer.content)
        info = DatasetInfo(
            tokenizer=TokenizerInfo(tokenizer.name, tokenizer.sha256, tokenizer.file),
            vocab_size=tokenizer.vocab_size,
            eot_id=tokenizer.eot_id,
            dtype=self._dtype,
            splits={name: split.finish() for name, split in self.splits.items()},
        )
        self.add_file(schema.MANIFEST, info.to_json())
        try:
            self._folder.rename(self._path)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            # Another process was first.
            raise FileExistsError(f"{self._path} exists and is not empty") from None


class SplitWriter:
    """Appends tokens, in pieces of any size, and document ends to one split."""

    def __init__(self, folder: Path, dtype: str, vocab_size: int):
        self._tokens = _ArrayWriter(folder / "tokens", dtype)
        self._folder, self._vocab_size = folder, vocab_size
        self._offsets = array("Q", [0])
        self._source_bytes = 0

    def append(self, ids: np.ndarray, source_bytes: int) -> None:
        """Adds `ids`, the tokens of `source_bytes` bytes of UTF-8 text, to the open document."""
        largest = int(ids.max(initial=0))
        if largest >= self._vocab_size:
            raise ValueError(f"token {largest} is not below vocab_size {self._vocab_size}")
        self._tokens.append(ids)
        self._source_bytes += source_bytes

    def end_document(self) -> None:
        self._offsets.append(self._tokens.length)

    def finish(self) -> SplitInfo:
        """Writes what is buffered; tokens after the last document end are a document too."""
        if self._offsets[-1] != self._tokens.length:
            self.end_document()
        self._tokens.finish()
        documents = _ArrayWriter(self._folder / "documents", "uint64", self._tokens.sha256)
        documents.append(np.frombuffer(self._offsets, np.uint64))
        documents.finish()
        return SplitInfo(
            tokens=self._tokens.length,
            documents=len(self._offsets) - 1,
            source_bytes=self._source_bytes,
            sha256=documents.sha256.hexdigest(),
        )


class _ArrayWriter:
    """Appends to a 1-D zarr3 array shard by shard, and hashes the bytes of its values."""

    def __init__(self, folder: Path, dtype: str, sha256: hashlib._Hash | None = None):
        spec = schema.array_spec(schema.kvstore(folder), dtype)
        self._array = tensorstore.open(spec, create=True, dtype=dtype).result()
        self._buffer = np.empty(schema.SHARD, np.dtype(dtype).newbyteorder("<"))
        self._filled = 0
        self._written = 0
        self.sha256 = sha256 or hashlib.sha256()

    @property
    def length(self) -> int:
        return self._written + self._filled

    def append(self, values: np.ndarray) -> None:
        while len(values):
            part = values[: len(self._buffer) - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            values = values[len(part) :]
            if self._filled == len(self._buffer):
                self.finish()

    def finish(self) -> None:
        """Writes the buffer, as one shard or the part of one at the end of the array."""
        if not self._filled:
            return
        part, start = self._buffer[: self._filled], self._written
        self.sha256.update(part.data)
        self._written, self._filled = self.length, 0
        # The array grows first, so that the write covers its last shard and reads nothing back.
        self._array = self._array.resize(exclusive_max=[self._written]).result()
        self._array[start : self._written].write(part).result()
