"""The token-dataset format, version 1: `dataset.json` and the layout of its zarr3 arrays.

docs/token_datasets.md describes the format for readers in other languages.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_pjit.errors import ConfigError

FORMAT = "gpt_pjit token dataset"
VERSION = 1
MANIFEST = "dataset.json"
SPLITS = ("train", "validation")
# Measured, 128M tokens on disk, 1,025 at random places: chunks of 1,024 tokens gave 21,000 reads a
# second, 4,096 gave 35,000, 65,536 gave 20,000. Shards of 1M to 8M made no difference; 4M tokens
# make 2,146 files of 9B tokens, with a 16 KiB index each.
CHUNK = 2**12
SHARD = 2**22


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


def array_spec(location: dict | str, dtype: str) -> dict[str, Any]:
    """The TensorStore spec of a new, empty array at `location`, a kvstore."""
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    codecs = [little, {"name": "crc32c"}]
    sharding = {"chunk_shape": [CHUNK], "codecs": codecs, "index_codecs": codecs}
    return {
        "driver": "zarr3",
        "kvstore": location,
        "metadata": {
            "shape": [0],
            "data_type": dtype,
            "fill_value": 0,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [SHARD]}},
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        },
        # Chunks of zeros are stored too, so that a missing chunk is damage and never zeros.
        "store_data_equal_to_fill_value": True,
    }


def kvstore(root: str | Path, *parts: str) -> dict | str:
    """The TensorStore kvstore of a folder below `root`, a local path or a URL such as gs://b/set."""
    if "://" in str(root):
        return "/".join([str(root).rstrip("/"), *parts]) + "/"
    return {"driver": "file", "path": str(Path(root).absolute().joinpath(*parts)) + "/"}


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
