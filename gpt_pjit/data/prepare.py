"""From a corpus to a token dataset, once; afterwards the set is checked against the corpus."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from gpt_pjit.config import Config, DataConfig
from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.core.tokens import Tokenizer, check_vocabulary, load_tokenizer
from gpt_pjit.data.corpus import (
    SHOWN_PROBLEMS,
    CorpusFile,
    Part,
    check_files,
    find_files,
    kind_of,
    split_documents,
    split_tail,
)
from gpt_pjit.data.documents import training_texts
from gpt_pjit.data.tokenize import ALL_CORES, Counts, Effort, tokenize
from gpt_pjit.data.train_tokenizer import train_bpe
from gpt_pjit.data.writer import DRAFT, partial_folder

SOURCE = "source.json"  # in the set's folder: the files and settings that it was made of


@dataclass(frozen=True)
class Source:
    """All that the content of a set depends on."""

    settings: dict[str, str | float]
    files: dict[str, CorpusFile]

    def to_json(self) -> bytes:
        files = [dataclasses.astuple(file) for file in self.files.values()]
        return json.dumps({"settings": self.settings, "files": files}, indent=0).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Source:
        fields = json.loads(data)
        files = [CorpusFile(*file) for file in fields["files"]]
        return cls(fields["settings"], {file.path: file for file in files})


def prepare_text(config: Config, folder: Path) -> None:
    """For a run: `config.data.text` as a set in `folder`, tokenised where it is not there yet."""
    if not config.data.tokenizer.startswith("bpe:"):
        tokenizer = load_tokenizer(config.data.tokenizer)
        check_vocabulary(tokenizer.name, tokenizer.vocab_size, config.model.vocab_size)
    prepare(config.data, folder)


def prepare(config: DataConfig, folder: Path, effort: Effort = ALL_CORES) -> Counts | None:
    """Tokenises `config.text` into a set in `folder`; None if it is there already.

    Raises ConfigError, and leaves the set as it is, if it was made of other text or settings. A set
    that was begun is gone on with.
    """
    stored = _stored_source(folder)
    begun = _begun_source(folder) if stored is None else None
    tokenizer = None if config.tokenizer.startswith("bpe:") else load_tokenizer(config.tokenizer)
    known = stored or begun
    files, problems = check_files(find_files(config), known.files if known else {})
    if problems and not (effort.skip_errors and files):
        more = len(problems) - SHOWN_PROBLEMS
        rest = [f"and {more} more files"] if more > 0 else []
        raise ConfigError([*problems[:SHOWN_PROBLEMS], *rest], "data.text")
    source = _source(config, tokenizer, files)
    if stored is None:
        if begun:
            _check_same(begun, source, partial_folder(folder))
        try:
            counts = _write(config, source, tokenizer, folder, effort)
            counts.skipped += len(problems)
            return counts
        except FileExistsError:  # another process was first
            stored = _stored_source(folder)
            assert stored, f"{folder} came and went"
    _check_same(stored, source, folder)
    shutil.rmtree(partial_folder(folder), ignore_errors=True)  # left by a kill just after the end
    return None


def _source(config: DataConfig, tokenizer: Tokenizer | None, files: list[CorpusFile]) -> Source:
    settings: dict[str, str | float] = {
        "tokenizer": tokenizer.sha256 if tokenizer and tokenizer.file else config.tokenizer,
        "validation_split": config.validation_split,
        "validation_fraction": config.validation_fraction,
        "text_column": config.text_column,
    }
    return Source(settings, {file.path: file for file in files})


def _write(
    config: DataConfig, source: Source, tokenizer: Tokenizer | None, folder: Path, effort: Effort
) -> Counts:
    split = {"documents": split_documents, "tail": split_tail}[config.validation_split]
    parts = split(list(source.files.values()), config.validation_fraction)
    _check_parts(parts, config)
    if tokenizer is None:
        tokenizer = _train_tokenizer(config, parts)
    return tokenize(folder, parts, tokenizer, config, effort, (SOURCE, source.to_json()))


def _train_tokenizer(config: DataConfig, parts: list[Part]) -> Tokenizer:
    size = config.tokenizer.removeprefix("bpe:")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"bpe-{size}.json"
        texts = training_texts(parts, config.text_column, config.validation_fraction)
        train_bpe(texts, int(size), path, progress=sys.stderr.isatty())
        return load_tokenizer(str(path))


def _stored_source(folder: Path) -> Source | None:
    if not folder.exists() or not any(folder.iterdir()):
        return None
    try:
        return Source.from_json((folder / SOURCE).read_bytes())
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = (
            f"holds files, but no {SOURCE} that says what text they are made of ({error}); "
            "delete the folder or use a new workdir, or set data.path to use it as a set"
        )
        raise ConfigError([problem], f"folder {folder}") from None


def _begun_source(folder: Path) -> Source | None:
    path = partial_folder(folder) / DRAFT / SOURCE
    return Source.from_json(path.read_bytes()) if path.exists() else None


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


def _file_differences(old: dict[str, CorpusFile], new: dict[str, CorpusFile]) -> list[str]:
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
    filled = {part.split for part in parts if part.stop > part.start or kind_of(part.path) == "hub"}
    fraction = config.validation_fraction
    whole = {"train", "validation"} if fraction > 0 else {"train"}
    if "" not in filled and not filled >= whole:
        empty = "validation" if "train" in filled else "train"
        constraint = f"leaves split {empty!r} empty for the {len(parts)} documents of data.text"
        remedy = "change it, add text, or set data.validation_split to tail to cut a document"
        raise ConfigError([Problem("data.validation_fraction", fraction, constraint, remedy)])
