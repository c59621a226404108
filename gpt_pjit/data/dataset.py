"""Reading a token dataset from a local folder or an object store, any window at any offset."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np
import tensorstore

from gpt_pjit.data import schema
from gpt_pjit.data.schema import DatasetInfo, SplitInfo
from gpt_pjit.data.tokenizers import BytesTokenizer, Tokenizer, tokenizer_from_bytes
from gpt_pjit.errors import ConfigError

# Holds the shard indexes of a set of 9B tokens, which halves the requests to an object store.
CACHE_BYTES = 2**27
# A network that fails is an error to retry; every other status says that the data are damaged.
TRANSIENT = ("ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNAVAILABLE")


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
        context = tensorstore.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})
        splits = {
            name: TokenSplit(path, name, split, info.dtype, context)
            for name, split in info.splits.items()
        }
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


class TokenSplit:
    """One split: `tokens`, `documents` and `source_bytes` are its sizes, `read` its tokens."""

    def __init__(
        self, path: str, name: str, info: SplitInfo, dtype: str, context: tensorstore.Context
    ):
        self.path, self.name, self.info = path, name, info
        self.tokens, self.documents = info.tokens, info.documents
        self.source_bytes = info.source_bytes
        self._context = context
        self._tokens = self._open("tokens", dtype, info.tokens)

    def __repr__(self) -> str:
        return f"TokenSplit({self.path}/{self.name}, {self.tokens:,} tokens)"

    def read(self, starts: np.ndarray, length: int) -> np.ndarray:
        """int32 [len(starts), length] tokens from each start on, all read at once."""
        result = np.empty((len(starts), length), np.int32)
        futures = [self._tokens[start : start + length].read() for start in starts.tolist()]
        for row, future in enumerate(futures):
            try:
                result[row] = future.result()
            except ValueError as error:
                at = int(starts[row])
                raise self._unreadable(f"tokens {at} to {at + length}", error) from None
        return result

    def document_offsets(self, start: int, stop: int) -> np.ndarray:
        """uint64 offsets `start` to `stop`: document i is the tokens from offset i to i + 1."""
        try:
            return self._documents[start:stop].read().result()
        except ValueError as error:
            raise self._unreadable(f"document offsets {start} to {stop}", error) from None

    def verify(self) -> None:
        """Reads the whole split and compares its content hash; raises ConfigError if it differs."""
        digest = hashlib.sha256()
        stored = self._tokens.dtype.numpy_dtype.newbyteorder("<")
        for start in range(0, self.tokens, schema.SHARD):
            length = min(schema.SHARD, self.tokens - start)
            digest.update(self.read(np.array([start]), length)[0].astype(stored).data)
        for start in range(0, self.documents + 1, schema.SHARD):
            stop = min(start + schema.SHARD, self.documents + 1)
            digest.update(self.document_offsets(start, stop).astype("<u8").data)
        if digest.hexdigest() != self.info.sha256:
            problem = (
                f"split {self.name!r} should have content hash {self.info.sha256}, has "
                f"{digest.hexdigest()}; copy or write the set again"
            )
            raise ConfigError([problem], f"token dataset {self.path}")

    @functools.cached_property
    def _documents(self) -> tensorstore.TensorStore:
        return self._open("documents", "uint64", self.documents + 1)

    def _open(self, array: str, dtype: str, length: int) -> tensorstore.TensorStore:
        location = schema.kvstore(self.path, self.name, array)
        spec = {"driver": "zarr3", "kvstore": location, "fill_missing_data_reads": False}
        try:
            opened = tensorstore.open(
                spec, context=self._context, read=True, dtype=dtype, recheck_cached_data=False
            ).result()
        except ValueError as error:
            raise self._unreadable(f"array {array!r}", error) from None
        if opened.shape != (length,):
            problem = (
                f"split {self.name!r} should hold {length} {array}, has shape {opened.shape}; "
                "copy or write the set again"
            )
            raise ConfigError([problem], f"token dataset {self.path}")
        return opened

    def _unreadable(self, what: str, error: ValueError) -> Exception:
        reason = str(error).partition(" [")[0]
        if reason.startswith(TRANSIENT):
            return OSError(f"{what} of split {self.name!r} of {self.path}: {reason}")
        problem = f"{what} of split {self.name!r} cannot be read: {reason}; copy the set again"
        return ConfigError([problem], f"token dataset {self.path}")


def _read_file(path: str, name: str) -> bytes | None:
    """The content of a file of the set, None if it does not exist."""
    try:
        result = tensorstore.KvStore.open(schema.kvstore(path)).result().read(name).result()
    except ValueError as error:
        reason = str(error).partition(" [")[0]
        problem = f"{name} cannot be read: {reason}; check the path and the access to it"
        raise ConfigError([problem], f"token dataset {path}") from None
    return result.value if result.state == "value" else None


def _no_manifest(path: str) -> ConfigError:
    if _read_file(path, "train/tokens/zarr.json") is not None:
        problem = (
            f"holds tokens but no {schema.MANIFEST}: writing or copying it was interrupted; "
            "delete the folder, and write or copy the set again"
        )
    else:
        problem = f"has no {schema.MANIFEST}, so it is not a token dataset; check the path"
    return ConfigError([problem], f"token dataset {path}")
