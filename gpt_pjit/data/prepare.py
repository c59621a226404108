"""From text files to a token dataset, once; afterwards the set is checked against the text."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt_pjit.config import DataConfig
from gpt_pjit.data.corpus import (
    Part,
    TextFile,
    check_files,
    find_files,
    pieces,
    split_documents,
    split_tail,
)
from gpt_pjit.data.dataset import TokenDataset
from gpt_pjit.data.progress import progress
from gpt_pjit.data.schema import SPLITS
from gpt_pjit.data.tokenizers import Tokenizer, load_tokenizer, train_bpe
from gpt_pjit.data.writer import DatasetWriter
from gpt_pjit.errors import ConfigError, Problem

SOURCE = "source.json"  # in the set's folder: the text and settings that it was made of
BATCH = 2**23  # characters tokenised at a time, in about 0.4 GB of memory


@dataclass(frozen=True)
class Source:
    """All that the content of a set depends on."""

    settings: dict[str, str | float]
    files: dict[str, TextFile]

    def to_json(self) -> bytes:
        files = [dataclasses.astuple(file) for file in self.files.values()]
        return json.dumps({"settings": self.settings, "files": files}, indent=0).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Source:
        fields = json.loads(data)
        files = [TextFile(*file) for file in fields["files"]]
        return cls(fields["settings"], {file.path: file for file in files})


def open_data(config: DataConfig, cache: Path, vocab_size: int) -> TokenDataset:
    """The set at `config.path`, or that of `config.text`, made in folder `cache` if need be.

    Raises ConfigError if its ids do not fit `vocab_size`, the model's, or a split is missing.
    """
    if config.text and not config.tokenizer.startswith("bpe:"):
        tokenizer = load_tokenizer(config.tokenizer)
        _check_vocabulary(tokenizer.name, tokenizer.vocab_size, vocab_size)
    dataset = TokenDataset.open(prepare(config, cache) if config.text else config.path)
    _check_vocabulary(dataset.info.tokenizer.name, dataset.vocab_size, vocab_size)
    if not dataset.splits.keys() >= set(SPLITS):
        problem = f"expected splits {', '.join(SPLITS)}, got {', '.join(dataset.splits) or 'none'}"
        raise ConfigError([problem + "; write it with both"], f"token dataset {dataset.path}")
    return dataset


def prepare(config: DataConfig, cache: Path) -> Path:
    """Tokenises `config.text` into a set in folder `cache`, unless it is there; returns `cache`.

    Raises ConfigError, and leaves the set as it is, if it was made of other text or settings.
    """
    stored = _stored_source(cache)
    tokenizer = None if config.tokenizer.startswith("bpe:") else load_tokenizer(config.tokenizer)
    files = check_files(find_files(config), stored.files if stored else {})
    settings: dict[str, str | float] = {
        "tokenizer": tokenizer.sha256 if tokenizer and tokenizer.file else config.tokenizer,
        "validation_split": config.validation_split,
        "validation_fraction": config.validation_fraction,
    }
    source = Source(settings, {file.path: file for file in files})
    if stored is None:
        try:
            _write(config, source, tokenizer, cache)
            return cache
        except FileExistsError:  # another process was first
            stored = _stored_source(cache)
            assert stored, f"{cache} came and went"
    _check_same(stored, source, cache)
    return cache


def _write(config: DataConfig, source: Source, tokenizer: Tokenizer | None, cache: Path) -> None:
    split = {"documents": split_documents, "tail": split_tail}[config.validation_split]
    parts = split(list(source.files.values()), config.validation_fraction)
    _check_parts(parts, config)
    if tokenizer is None:
        tokenizer = _train_tokenizer(config.tokenizer, parts)
    total = sum(part.stop - part.start for part in parts)
    with DatasetWriter(cache, tokenizer) as writer, progress("tokenising", total) as advance:
        for batch in _batches(parts):
            encoded = iter(tokenizer.encode_batch([text for _, text in batch if text is not None]))
            for part, text in batch:
                split_writer = writer.splits[part.split]
                if text is not None:
                    ids, size = next(encoded), len(text.encode())
                    split_writer.append(ids, size)
                    advance(size, len(ids))
                    continue
                if part.ends:
                    split_writer.append(np.array([tokenizer.eot_id]), 0)
                split_writer.end_document()
        writer.add_file(SOURCE, source.to_json())


def _batches(parts: list[Part]) -> Iterator[list[tuple[Part, str | None]]]:
    """Batches of texts of about BATCH characters; a part's texts are followed by None."""
    batch: list[tuple[Part, str | None]] = []
    size = 0
    for part in parts:
        for text in pieces(part):
            batch.append((part, text))
            size += len(text)
            if size >= BATCH:
                yield batch
                batch, size = [], 0
        batch.append((part, None))
    yield batch


def _train_tokenizer(spec: str, parts: list[Part]) -> Tokenizer:
    size = spec.removeprefix("bpe:")
    texts = (text for part in parts if part.split == "train" for text in pieces(part))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"bpe-{size}.json"
        train_bpe(texts, int(size), path, progress=sys.stderr.isatty())
        return load_tokenizer(str(path))


def _stored_source(cache: Path) -> Source | None:
    if not cache.exists() or not any(cache.iterdir()):
        return None
    try:
        return Source.from_json((cache / SOURCE).read_bytes())
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = (
            f"holds files, but no {SOURCE} that says what text they are made of ({error}); "
            "delete the folder or use a new workdir, or set data.path to use it as a set"
        )
        raise ConfigError([problem], f"folder {cache}") from None


def _check_same(stored: Source, source: Source, cache: Path) -> None:
    differences = [
        f"data.{name} was {stored.settings.get(name)!r}, is {value!r}"
        for name, value in source.settings.items()
        if stored.settings.get(name) != value
    ]
    differences += _file_differences(stored.files, source.files)
    if differences:
        problem = (
            f"it was made of other text or settings: {'; '.join(differences)}; delete the folder "
            "to tokenise again, or use a new workdir"
        )
        raise ConfigError([problem], f"token dataset {cache}")


def _file_differences(old: dict[str, TextFile], new: dict[str, TextFile]) -> list[str]:
    if [file.sha256 for file in old.values()] == [file.sha256 for file in new.values()]:
        return []  # the names do not matter
    kinds = {
        "changed": [path for path in new if path in old and new[path].sha256 != old[path].sha256],
        "new": [path for path in new if path not in old],
        "gone": [path for path in old if path not in new],
    }
    return [
        f"1 file {kind} ({paths[0]})"
        if len(paths) == 1
        else f"{len(paths)} files {kind} ({paths[0]}, ...)"
        for kind, paths in kinds.items()
        if paths
    ]


def _check_parts(parts: list[Part], config: DataConfig) -> None:
    filled = {part.split for part in parts if part.stop > part.start}
    fraction = config.validation_fraction
    if "train" not in filled or (fraction > 0 and "validation" not in filled):
        empty = "validation" if "train" in filled else "train"
        constraint = f"leaves split {empty!r} empty for the {len(parts)} documents of data.text"
        remedy = "change it, add text, or set data.validation_split to tail to cut a document"
        raise ConfigError([Problem("data.validation_fraction", fraction, constraint, remedy)])


def _check_vocabulary(name: str, needed: int, vocab_size: int) -> None:
    if needed > vocab_size:
        constraint = f"is smaller than the {needed} ids of tokenizer {name}"
        remedy = f"set it to at least {needed}; {-(-needed // 128) * 128} divides well"
        raise ConfigError([Problem("model.vocab_size", vocab_size, constraint, remedy)])
