"""Writing a token dataset: in bounded memory, whole or not at all, and resumed after a kill."""

import fcntl
import hashlib
import io
import json
import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import numpy as np
import tensorstore

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.files import file_errors, replace_file, tensorstore_spec
from gpt_pjit.core.tokens import (
    MANIFEST,
    SPLITS,
    DatasetInfo,
    SplitInfo,
    Tokenizer,
    TokenizerInfo,
    array_metadata,
    first_line,
    open_array,
    read_ranges,
    shard_bounds,
)

# An example of 1,025 tokens reads a chunk or two of 8 KiB. Shards of 4M tokens make 2,146 files of
# 9B tokens, with an index of 16 KiB each.
CHUNK = 2**12
SHARD = 2**22
STATE = "progress.npz"  # written by `save`
DRAFT = "set"  # becomes the set

State = dict[str, np.ndarray]


def partial_folder(path: Path) -> Path:
    """Where the set of `path` is written."""
    return path.with_name(f"{path.name}.partial")


def writing(path: Path) -> AbstractContextManager[None]:
    """Turns errors of the disk into one sentence that names `path`."""
    return file_errors(f"{path} cannot be written", "output")


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Writes a file onto the disk, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content)


class DatasetWriter:
    """`with DatasetWriter(path, tokenizer) as writer: writer.splits["train"].append(...)`.

    Everything goes to `partial_folder(path)`, and becomes the set by a rename at the end. If the
    block ends early the folder stays if `save` was called, and the next writer resumes from there,
    with the last argument of `save` in `saved`; for a new set, `saved` is None.
    Raises ConfigError if `path` holds something, or another process writes it.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer):
        self._path, self._tokenizer = path, tokenizer
        self._dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
        self._partial = partial_folder(path)
        self.draft = self._partial / DRAFT
        self.splits: dict[str, SplitWriter] = {}
        self.saved: Any = None

    def __enter__(self) -> Self:
        if self._path.is_file() or (self._path.is_dir() and any(self._path.iterdir())):
            raise ConfigError(["exists and is not empty"], f"output {self._path}")
        self._lock = _lock(self._partial)
        state: State = {}
        if (self._partial / STATE).exists():
            state = dict(np.load(self._partial / STATE))
            self.saved = json.loads(str(state["saved"]))
        for name in SPLITS:
            self.splits[name] = SplitWriter(self.draft / name, self._dtype, self._tokenizer, state)
        return self

    def save(self, progress: Any) -> None:
        """Puts everything appended so far onto the disk, with `progress`, which is any JSON."""
        state = {"saved": np.array(json.dumps(progress))}
        for split in self.splits.values():
            state |= split.state()
        content = io.BytesIO()
        np.savez(content, **state)  # type: ignore[arg-type]  # numpy's stubs have only its own
        write_file(self._partial / STATE, content.getbuffer())

    def add_file(self, name: str, content: bytes) -> None:
        """Puts a file into the set's folder, and onto the disk."""
        write_file(self.draft / name, content)

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            if error is None:
                self._commit()
                (self._partial / STATE).unlink(missing_ok=True)
        finally:
            if not (self._partial / STATE).exists():
                shutil.rmtree(self._partial, ignore_errors=True)
            os.close(self._lock)

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
        self.add_file(MANIFEST, info.to_json())
        self.draft.rename(self._path)


class SplitWriter:
    """Appends tokens and document ends to one split; resumes from `state`, of another writer."""

    def __init__(self, folder: Path, dtype: str, tokenizer: Tokenizer, state: State):
        self._counts = f"{folder.name} counts"
        self._vocab_size, self._eot_id = tokenizer.vocab_size, tokenizer.eot_id
        self._tokens = _ArrayWriter(folder / "tokens", dtype, state)
        self._offsets = _ArrayWriter(folder / "documents", "uint64", state)
        self._last_end, self.source_bytes = state.get(self._counts, np.zeros(2, int)).tolist()
        if not self._offsets.length:
            self._offsets.append(np.zeros(1, np.uint64))

    def append(self, ids: np.ndarray, ends: np.ndarray, source_bytes: int) -> None:
        """Adds `ids`, the tokens of `source_bytes` bytes of UTF-8 text.

        `ends` are the places in `ids` where documents end, just after the end-of-text if they have
        one. What follows the last is the beginning of a document.
        """
        largest = int(ids.max(initial=0))
        if largest >= self._vocab_size:
            raise ValueError(f"token {largest} is not below vocab_size {self._vocab_size}")
        if not np.isin(np.flatnonzero(ids == self._eot_id) + 1, ends).all():
            raise ValueError(f"end-of-text, token {self._eot_id}, inside a document")
        offsets = self._tokens.length + np.asarray(ends).astype(np.uint64)
        self._tokens.append(ids)
        self._offsets.append(offsets)
        self._last_end = int(offsets[-1]) if len(offsets) else self._last_end
        self.source_bytes += source_bytes

    def state(self) -> State:
        """What another writer needs to resume, if the shards that are full stay as they are."""
        counts = {self._counts: np.array([self._last_end, self.source_bytes])}
        return counts | self._tokens.state() | self._offsets.state()

    def finish(self) -> SplitInfo:
        """Writes the rest; tokens after the last document end are a document too."""
        if self._last_end != self._tokens.length:
            self._offsets.append(np.array([self._tokens.length], np.uint64))
        digest = hashlib.sha256()
        self._tokens.finish(digest)
        self._offsets.finish(digest)
        return SplitInfo(
            tokens=self._tokens.length,
            documents=self._offsets.length - 1,
            source_bytes=self.source_bytes,
            sha256=digest.hexdigest(),
        )


class _ArrayWriter:
    """Appends to an array; each shard is on the disk before the next one starts."""

    def __init__(self, folder: Path, dtype: str, state: State):
        self._folder, self._dtype = folder, dtype
        self._name = f"{folder.parent.name} {folder.name}"
        self._shards = int(state.get(f"{self._name} shards", 0))
        self._buffer, self._filled = np.empty(SHARD, dtype), 0
        self.append(state.get(f"{self._name} rest", self._buffer[:0]))

    @property
    def length(self) -> int:
        return self._shards * SHARD + self._filled

    def append(self, values: np.ndarray) -> None:
        while len(values):
            part = values[: SHARD - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            values = values[len(part) :]
            if self._filled == SHARD:
                self._write_shard()
                self._shards, self._filled = self._shards + 1, 0

    def state(self) -> State:
        rest = self._buffer[: self._filled]
        return {f"{self._name} rest": rest, f"{self._name} shards": np.array(self._shards)}

    def finish(self, digest: "hashlib._Hash") -> None:
        """Writes the last shard and the metadata; hashes the values as they are on the disk."""
        if self._filled:
            self._write_shard()
        metadata = array_metadata(self._dtype, self.length, SHARD, CHUNK)
        write_file(self._folder / "zarr.json", json.dumps(metadata).encode())
        written = open_array(tensorstore_spec(str(self._folder)), metadata)
        for start, stop in shard_bounds(written):
            digest.update(read_ranges(written, [start], stop - start).data)

    def _write_shard(self) -> None:
        spec = {
            "driver": "zarr3",
            "kvstore": tensorstore_spec(str(self._folder)),
            "metadata": array_metadata(self._dtype, self.length, SHARD, CHUNK),
            "store_data_equal_to_fill_value": True,
        }
        # A shard that a killed run has left would be merged with.
        (self._folder / "c" / str(self._shards)).unlink(missing_ok=True)
        try:
            array = tensorstore.open(spec, open=True, assume_metadata=True, write=True).result()
            array[self._shards * SHARD :].write(self._buffer[: self._filled]).result()
        except ValueError as error:
            raise OSError(first_line(error)) from None


def _lock(folder: Path) -> int:
    """A descriptor that keeps other processes from `folder` until it is closed."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        problem = "is being written by another process; wait for it, or end it"
        raise ConfigError([problem], f"token dataset {folder}") from None
    return lock
