"""Reading a token dataset from a local folder or an object store, any window at any offset."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens import schema
from gpt_pjit.core.tokens.arrays import Array, DamageError, open_array, read_file
from gpt_pjit.core.tokens.schema import DatasetInfo, SplitInfo
from gpt_pjit.core.tokens.tokenizers import BytesTokenizer, Tokenizer, tokenizer_from_bytes


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
        data = _read_file(path, schema.MANIFEST)
        if data is None:
            raise _no_manifest(path)
        info = DatasetInfo.from_json(data, path)
        splits = {name: TokenSplit(path, name, split, info) for name, split in info.splits.items()}
        return cls(path, info, splits)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer from the copy of its file that the set holds."""
        info = self.info.tokenizer
        content = _read_file(self.path, info.file) if info.file else BytesTokenizer.content
        got = "no such file" if content is None else hashlib.sha256(content).hexdigest()
        if content is None or got != info.sha256:
            problem = (
                f"file {info.file} of tokenizer {info.name!r} should have SHA-256 {info.sha256}, "
                f"got {got}; copy or write the set again"
            )
            raise ConfigError([problem], f"token dataset {self.path}")
        return tokenizer_from_bytes(info.name, content) if info.file else BytesTokenizer()

    def verify(self) -> None:
        """Reads everything; raises ConfigError with all that is damaged."""
        problems = [problem for split in self.splits.values() for problem in split.verify()]
        try:
            self.tokenizer()
        except ConfigError as error:
            problems += map(str, error.problems)
        if problems:
            problems[-1] += "; copy or write the set again"
            raise ConfigError(problems, f"token dataset {self.path}")


class TokenSplit:
    """One split: `tokens`, `documents` and `source_bytes` are its sizes, `read` its tokens."""

    def __init__(self, path: str, name: str, info: SplitInfo, dataset: DatasetInfo):
        self.path, self.name, self.info = path, name, info
        self.tokens, self.documents = info.tokens, info.documents
        self.source_bytes, self.eot_id = info.source_bytes, dataset.eot_id
        self._tokens = self._open("tokens", dataset.dtype, info.tokens)
        self.read_threads = self._tokens.threads

    def __repr__(self) -> str:
        return f"TokenSplit({self.path}/{self.name}, {self.tokens:,} tokens)"

    def read(self, starts: np.ndarray, length: int) -> np.ndarray:
        """int32 [len(starts), length] tokens from each start on."""
        result = np.empty((len(starts), length), np.int32)
        self._read(self._tokens, "tokens", starts.tolist(), result)
        return result

    def document_offsets(self, start: int, stop: int) -> np.ndarray:
        """uint64 offsets `start` to `stop`: document i is the tokens from offset i to i + 1."""
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
        """Reads the whole split: what is damaged, each with its place; [] if nothing is."""
        problems: list[str] = []
        digest = hashlib.sha256()
        for array, what in ((self._tokens, "tokens"), (self._documents, "documents")):
            for start in range(0, array.length, array.step):
                values = np.empty((1, min(array.step, array.length - start)), array.dtype)
                try:
                    array.read([start], values)
                except DamageError as damage:
                    problems.append(f"{what} {start} to {start + values.size}: {damage}")
                digest.update(values.data)
        if not problems and digest.hexdigest() != self.info.sha256:
            problems.append(
                f"the content hash should be {self.info.sha256}, is {digest.hexdigest()}"
            )
        return [f"split {self.name!r}: {problem}" for problem in problems]

    @functools.cached_property
    def _documents(self) -> Array:
        return self._open("documents", "uint64", self.documents + 1)

    def _open(self, array: str, dtype: str, length: int) -> Array:
        try:
            opened = open_array(self.path, self.name, array, dtype)
        except DamageError as damage:
            raise self._unreadable(f"array {array!r}", damage) from None
        if opened.length != length:
            problem = (
                f"split {self.name!r} should hold {length} {array}, has {opened.length}; "
                "copy or write the set again"
            )
            raise ConfigError([problem], f"token dataset {self.path}")
        return opened

    def _read(self, array: Array, what: str, starts: list[int], out: np.ndarray) -> None:
        try:
            array.read(starts, out)
        except DamageError as damage:
            raise self._unreadable(what, damage) from None

    def _unreadable(self, what: str, damage: DamageError) -> ConfigError:
        problem = f"{what} of split {self.name!r} cannot be read: {damage}; copy the set again"
        return ConfigError([problem], f"token dataset {self.path}")


def _read_file(path: str, name: str) -> bytes | None:
    """The content of a file of the set, None if it does not exist."""
    try:
        return read_file(path, name)
    except OSError as error:
        problem = f"{name} cannot be read: {error}; check the path and the access to it"
        raise ConfigError([problem], f"token dataset {path}") from None


def _no_manifest(path: str) -> ConfigError:
    if _read_file(path, "train/tokens/zarr.json") is not None:
        problem = (
            f"holds tokens but no {schema.MANIFEST}: writing or copying it was interrupted; "
            "delete the folder, and write or copy the set again"
        )
    else:
        problem = f"has no {schema.MANIFEST}, so it is not a token dataset; check the path"
    return ConfigError([problem], f"token dataset {path}")
