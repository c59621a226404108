"""From a corpus to a token dataset, once; afterwards the set is checked against the corpus."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from dataclasses import astuple, dataclass
from pathlib import Path

from gpt_pjit.config import Config
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens import Tokenizer, check_vocabulary, load_tokenizer
from gpt_pjit.data.corpus import BadInput, Corpus, CorpusFile, check_files, divide, find_files
from gpt_pjit.data.tokenize import Counts, TokenizeOptions, tokenize
from gpt_pjit.data.train_tokenizer import train_bpe, training_texts
from gpt_pjit.data.writer import DRAFT, SetExistsError, partial_folder, writing

PROVENANCE = "source.json"  # in the set's folder: the files and settings that it was made of
DEFAULTS = TokenizeOptions()


@dataclass(frozen=True)
class Provenance:
    """All that the content of a set depends on."""

    settings: dict[str, str | float]
    files: dict[str, CorpusFile]

    def to_json(self) -> bytes:
        files = [astuple(file) for file in self.files.values()]
        return json.dumps({"settings": self.settings, "files": files}, indent=0).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Provenance:
        fields = json.loads(data)
        files = [CorpusFile(*file) for file in fields["files"]]
        return cls(fields["settings"], {file.path: file for file in files})


def prepare_text(config: Config, folder: Path) -> None:
    """For a run: `config.data.text` as a set in `folder`, tokenised where it is not there yet."""
    name = config.data.tokenizer
    if not name.startswith("bpe:"):
        tokenizer = load_tokenizer(name)
        check_vocabulary(tokenizer.name, tokenizer.vocab_size, config.model.vocab_size)
    prepare(Corpus.of_config(config.data), name, folder)


def prepare(
    corpus: Corpus, tokenizer: str, folder: Path, options: TokenizeOptions = DEFAULTS
) -> Counts | None:
    """Tokenises a corpus into a set in `folder`; None if it is there already.

    `tokenizer` is a file, `bytes`, or bpe:SIZE, trained on the corpus. A partially written set is
    resumed. Raises ConfigError, and leaves the set alone, if it was made of other text or settings.
    """
    stored = _stored(folder)
    partial = _partial(folder) if stored is None else None
    loaded = None if tokenizer.startswith("bpe:") else load_tokenizer(tokenizer)
    known = stored or partial
    files, problems = check_files(find_files(corpus), known.files if known else {})
    bad = BadInput(options.skip_errors)
    bad.report(problems)
    settings: dict[str, str | float] = {
        "tokenizer": loaded.sha256 if loaded and loaded.file else tokenizer,
        "validation_split": corpus.validation_split,
        "validation_fraction": corpus.validation_fraction,
        "text_column": corpus.column,
    }
    wanted = Provenance(settings, {file.path: file for file in files})
    if stored is None:
        if partial:
            _check_same(partial, wanted, partial_folder(folder))
        parts = divide(files, corpus)
        if loaded is None:
            loaded = _train_tokenizer(corpus, parts, tokenizer, options)
        note = (PROVENANCE, wanted.to_json())
        try:
            with writing(folder):
                counts = tokenize(folder, parts, loaded, corpus, options, note)
            counts.skipped += bad.count
            return counts
        except SetExistsError:  # another process was first
            stored = _stored(folder)
            assert stored, f"{folder} came and went"
    _check_same(stored, wanted, folder)
    shutil.rmtree(partial_folder(folder), ignore_errors=True)  # left by a kill just after the end
    return None


def _train_tokenizer(corpus: Corpus, parts: list, name: str, options: TokenizeOptions) -> Tokenizer:
    size = name.removeprefix("bpe:")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"bpe-{size}.json"
        texts = training_texts(parts, corpus, BadInput(options.skip_errors))
        train_bpe(texts, int(size), path, progress=sys.stderr.isatty())
        return load_tokenizer(str(path))


def _stored(folder: Path) -> Provenance | None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        return Provenance.from_json((folder / PROVENANCE).read_bytes())
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        problem = (
            f"holds files, but no {PROVENANCE} that says what text they are made of; delete the "
            "folder, or choose another"
        )
        raise ConfigError([problem], f"folder {folder}") from None


def _partial(folder: Path) -> Provenance | None:
    path = partial_folder(folder) / DRAFT / PROVENANCE
    return Provenance.from_json(path.read_bytes()) if path.exists() else None


def _check_same(stored: Provenance, wanted: Provenance, folder: Path) -> None:
    differences = [
        f"{name} was {stored.settings.get(name)!r}, is {value!r}"
        for name, value in wanted.settings.items()
        if stored.settings.get(name) != value
    ]
    differences += _file_differences(stored.files, wanted.files)
    if differences:
        problem = (
            f"it was made of other text or settings: {'; '.join(differences)}; delete the folder "
            "to tokenise again, or choose another"
        )
        raise ConfigError([problem], f"token dataset {folder}")


def _file_differences(old: dict[str, CorpusFile], new: dict[str, CorpusFile]) -> list[str]:
    if [file.sha256 for file in old.values()] == [file.sha256 for file in new.values()]:
        return []  # the names do not matter
    kinds = {
        "changed": [path for path in new if path in old and new[path].sha256 != old[path].sha256],
        "added": [path for path in new if path not in old],
        "removed": [path for path in old if path not in new],
    }
    return [f"{len(p)} {kind}: {p[0]}{', ...' * (len(p) > 1)}" for kind, p in kinds.items() if p]
