"""The token-dataset format, version 1: `dataset.json` and the metadata of the zarr arrays.

docs/token_datasets.md describes the format for readers in other languages.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Self, get_type_hints

from gpt_pjit.core.errors import ConfigError

FORMAT = "gpt_pjit token dataset"
VERSION = 1
MANIFEST = "dataset.json"
SPLITS = ("train", "validation")
DTYPES = ("uint16", "uint32")
LARGEST = 2**62  # of every number


@dataclass(frozen=True)
class TokenizerInfo:
    name: str
    sha256: str  # of its file
    file: str | None  # its name in the set


@dataclass(frozen=True)
class SplitInfo:
    """Sizes of a split, and the SHA-256 of its token bytes followed by its document offsets."""

    tokens: int
    documents: int
    source_bytes: int  # of UTF-8 text
    sha256: str


@dataclass(frozen=True)
class DatasetInfo:
    """The content of `dataset.json`."""

    tokenizer: TokenizerInfo
    vocab_size: int
    eot_id: int
    dtype: str  # one of DTYPES
    splits: dict[str, SplitInfo]

    @property
    def fingerprint(self) -> str:
        """A hash of all tokens, offsets and the tokenizer: equal for equal sets."""
        return checksum(self._fields())

    def to_json(self) -> bytes:
        fields = {**self._fields(), "sha256": self.fingerprint}
        return json.dumps(fields, indent=2).encode() + b"\n"

    def _fields(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Self:
        """Raises ConfigError if `data`, of the set at `where`, is damaged or in another format."""
        try:
            return cls._from_fields(json.loads(data))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            problem = f"cannot be read: {error}"
            raise ConfigError([problem], f"{MANIFEST} of {where}") from None

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> Self:
        if not isinstance(fields, dict) or not isinstance(fields.get("splits"), dict):
            raise TypeError("it is not an object with splits")
        if fields.get("format") != FORMAT or fields.get("version") != VERSION:
            raise ValueError(f"its format is not {FORMAT!r}, version {VERSION}")
        if fields.pop("sha256", None) != checksum(fields):
            raise ValueError("it was edited or damaged: the hash of its other fields is wrong")
        del fields["format"], fields["version"]
        fields["tokenizer"] = _typed(TokenizerInfo, fields["tokenizer"], "tokenizer")
        splits = fields["splits"].items()
        fields["splits"] = {name: _typed(SplitInfo, v, f"splits.{name}") for name, v in splits}
        info = _typed(cls, fields, "it")
        info._check_values()
        return info

    def _check_values(self) -> None:
        splits = self.splits.values()
        sizes = [n for s in splits for n in (s.tokens, s.documents, s.source_bytes)]
        if not all(0 <= size < LARGEST for size in (*sizes, self.vocab_size, self.eot_id)):
            raise ValueError("a size in it is negative or too large: tokens, vocab_size or another")
        if self.dtype not in DTYPES:
            raise ValueError(f"its dtype is none of {', '.join(DTYPES)}")
        for name in (*self.splits, self.tokenizer.file or "bytes"):
            if "/" in name or name in ("", ".", ".."):  # a file of somewhere else
                raise ValueError("a split or the tokenizer's file is not a plain name")


def _typed(cls: Any, fields: Any, name: str) -> Any:
    """`cls(**fields)`; raises TypeError unless each field is there and of its type."""
    if not isinstance(fields, dict):
        raise TypeError(f"{name} is not an object")
    kinds = get_type_hints(cls)
    for field, value in fields.items():
        kind = kinds.get(field, object)
        if isinstance(value, bool) or not isinstance(value, getattr(kind, "__origin__", kind)):
            wanted = getattr(kind, "__name__", kind)
            raise TypeError(f"{field} of {name} is not of type {wanted}")
    return cls(**fields)


def checksum(fields: dict[str, Any]) -> str:
    """The SHA-256 of `dataset.json` without its field sha256, as JSON in one defined spelling."""
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def array_metadata(
    dtype: str, length: int, shard: int | None = None, chunk: int | None = None
) -> dict[str, Any]:
    """The `zarr.json` of an array: shards of `shard` values, in chunks of `chunk` values.

    Without these two, only what the metadata of every array must say.
    """
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    sharding = {
        "chunk_shape": [chunk],
        "codecs": codecs,
        "index_codecs": codecs,
        "index_location": "end",
    }
    metadata = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [length],
        "data_type": dtype,
        "fill_value": 0,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }
    if shard is None:
        del metadata["chunk_grid"], sharding["chunk_shape"]
    return metadata
