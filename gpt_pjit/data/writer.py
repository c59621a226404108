"""Writing a token dataset: in bounded memory, whole or not at all, and going on after a kill."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens import DatasetInfo, SplitInfo, Tokenizer, TokenizerInfo, schema
from gpt_pjit.data.shards import ArrayWriter, write_file

STATE = "state.npz"  # all that `save` knew
DRAFT = "set"  # becomes the set


def partial_folder(path: Path) -> Path:
    """Where the set of `path` is written."""
    return path.with_name(f"{path.name}.partial")


class DatasetWriter:
    """`with DatasetWriter(path, tokenizer) as writer: writer.splits["train"].append(...)`.

    Everything goes to `partial_folder(path)`, and becomes the set by a rename at the end. If the
    block ends early the folder stays if `save` was called, and the next writer goes on from there:
    `saved` is what was given to `save`, None for a new set.
    Raises FileExistsError if `path` holds something, ConfigError if another process writes it.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer):
        self._path, self._tokenizer = path, tokenizer
        self._dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
        self._partial = partial_folder(path)
        self._draft = self._partial / DRAFT
        self.splits: dict[str, SplitWriter] = {}
        self.saved: Any = None

    def __enter__(self) -> Self:
        self._lock = _lock(self._partial)
        if self._path.is_file() or (self._path.is_dir() and any(self._path.iterdir())):
            self._leave(keep=False)
            raise self._exists()
        state: dict[str, np.ndarray] = {}
        if (self._partial / STATE).exists():
            state = dict(np.load(self._partial / STATE))
            self.saved = json.loads(str(state["saved"]))
        for name in schema.SPLITS:
            folder = self._draft / name
            self.splits[name] = SplitWriter(folder, self._dtype, self._tokenizer, state)
        return self

    def save(self, progress: Any) -> None:
        """Puts all that was appended onto the disk, with `progress`, which is any JSON."""
        state = {"saved": np.array(json.dumps(progress))}
        for split in self.splits.values():
            state |= split.state()
        content = io.BytesIO()
        np.savez(content, **state)  # type: ignore[arg-type]  # numpy's stubs have only its own
        write_file(self._partial / STATE, content.getbuffer())

    def add_file(self, name: str, content: bytes) -> None:
        """Puts a file into the set's folder, and onto the disk."""
        write_file(self._draft / name, content)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        keep = (self._partial / STATE).exists()
        try:
            if error is None:
                self._commit()
                keep = False
        except FileExistsError:
            keep = False
            raise
        finally:
            self._leave(keep)

    def _leave(self, keep: bool) -> None:
        if not keep:
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
        self.add_file(schema.MANIFEST, info.to_json())
        try:
            self._draft.rename(self._path)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            raise self._exists() from None

    def _exists(self) -> FileExistsError:
        return FileExistsError(f"{self._path} exists and is not empty")


class SplitWriter:
    """Appends tokens and document ends to one split; `state` is that of a writer to go on from."""

    def __init__(
        self, folder: Path, dtype: str, tokenizer: Tokenizer, state: dict[str, np.ndarray]
    ):
        self._folder = folder
        self._vocab_size, self._eot_id = tokenizer.vocab_size, tokenizer.eot_id
        self._tokens = ArrayWriter(folder / "tokens", dtype, state)
        self._offsets = ArrayWriter(folder / "documents", "uint64", state)
        counts = state.get(f"{folder.name} counts", np.zeros(2, np.int64))
        self._last_end, self._source_bytes = counts.tolist()
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
        self._source_bytes += source_bytes

    def state(self) -> dict[str, np.ndarray]:
        """What a writer needs that goes on from here, if the shards that are full stay as is."""
        counts = np.array([self._last_end, self._source_bytes], np.int64)
        arrays = self._tokens.state() | self._offsets.state()
        return {f"{self._folder.name} counts": counts, **arrays}

    def finish(self) -> SplitInfo:
        """Writes what is buffered; tokens after the last document end are a document too."""
        if self._last_end != self._tokens.length:
            self._offsets.append(np.array([self._tokens.length], np.uint64))
        digest = hashlib.sha256()
        self._tokens.finish(digest)
        self._offsets.finish(digest)
        return SplitInfo(
            tokens=self._tokens.length,
            documents=self._offsets.length - 1,
            source_bytes=self._source_bytes,
            sha256=digest.hexdigest(),
        )


def _lock(folder: Path) -> int:
    """A descriptor that keeps other processes from `folder` until it is closed."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            problem = "is being written by another process; wait for it, or end it"
            raise ConfigError([problem], f"token dataset {folder}") from None
        try:
            if os.path.samestat(os.fstat(lock), os.stat(folder / "lock")):
                return lock
        except FileNotFoundError:
            pass  # the other process finished in between and removed the folder
        os.close(lock)
