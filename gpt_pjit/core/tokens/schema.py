"""The token-dataset format, version 1: `dataset.json` and the layout of its zarr3 arrays.

docs/token_datasets.md describes the format for readers in other languages.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from gpt_pjit.core.errors import ConfigError

FORMAT = "gpt_pjit token dataset"
VERSION = 1
MANIFEST = "dataset.json"
SPLITS = ("train", "validation")
# A window of 1,025 tokens reads a chunk or two of 8 KiB, whose checksums take 0.5 us each. Shards
# of 4M tokens make 2,146 files of 9B tokens, with an index of 16 KiB each.
CHUNK = 2**12
SHARD = 2**22
CHECKSUM = 4  # bytes of crc32c after each chunk, and after the index
MISSING = 2**64 - 1  # offset and size in the index of a chunk that is not stored


@dataclass(frozen=True)
class TokenizerInfo:
    """The tokenizer's name, the SHA-256 of its file, and the file's name in the set, if any."""

    name: str
    sha256: str
    file: str | None


@dataclass(frozen=True)
class SplitInfo:
    """Sizes of a split, and the SHA-256 of its token bytes followed by its document offsets."""

    tokens: int
    documents: int
    source_bytes: int  # of UTF-8 text
    sha256: str


@dataclass(frozen=True)
class DatasetInfo:
    """What `dataset.json` says."""

    tokenizer: TokenizerInfo
    vocab_size: int
    eot_id: int
    dtype: str  # uint16 | uint32
    splits: dict[str, SplitInfo]

    @property
    def fingerprint(self) -> str:
        """A hash of all tokens, offsets and the tokenizer: equal for equal sets."""
        fields = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        return checksum(fields)

    def to_json(self) -> bytes:
        fields = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        return json.dumps({**fields, "sha256": self.fingerprint}, indent=2).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, where: str) -> DatasetInfo:
        """Raises ConfigError if `data`, of the set at `where`, is of another format or damaged."""
        fields = _parse(data, where)
        if fields.get("format") != FORMAT:
            problem = f"expected format {FORMAT!r}, got {fields.get('format')!r}; check the path"
            raise ConfigError([problem], f"{MANIFEST} of {where}")
        if fields.get("version") != VERSION:
            problem = (
                f"expected version {VERSION} of the format, got {fields.get('version')!r}; "
                "install the gpt_pjit that wrote the set, or write it again with this one"
            )
            raise ConfigError([problem], f"{MANIFEST} of {where}")
        stated = fields.pop("sha256", None)
        if stated != checksum(fields):
            problem = (
                f"field sha256 should be {checksum(fields)}, the hash of the others, got {stated}: "
                "the file was edited or damaged; copy or write the set again"
            )
            raise ConfigError([problem], f"{MANIFEST} of {where}")
        del fields["format"], fields["version"]
        try:
            fields["tokenizer"] = TokenizerInfo(**fields["tokenizer"])
            fields["splits"] = {k: SplitInfo(**v) for k, v in fields["splits"].items()}
            return cls(**fields)
        except (KeyError, TypeError, AttributeError) as error:
            problem = f"a field is missing, unknown or mistyped: {error}; write the set again"
            raise ConfigError([problem], f"{MANIFEST} of {where}") from None


def array_metadata(dtype: str, length: int, shard: int, chunk: int) -> dict[str, Any]:
    """The `zarr.json` of an array: shards of `shard` values, in chunks of `chunk` values."""
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    sharding = {
        "chunk_shape": [chunk],
        "codecs": codecs,
        "index_codecs": codecs,
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [length],
        "data_type": dtype,
        "fill_value": 0,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }


def _parse(data: bytes, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except ValueError as error:
        problem = f"is not JSON: {error}; copy or write the set again"
        raise ConfigError([problem], f"{MANIFEST} of {where}") from None
    return fields if isinstance(fields, dict) else {}


def checksum(fields: dict[str, Any]) -> str:
    """The SHA-256 of `dataset.json` without its field sha256, as JSON of one defined spelling."""
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
