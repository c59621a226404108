"""From a corpus to a token set, once; and tokenizers trained on the texts of a corpus."""

import io
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Self

import sentencepiece
import tokenizers

from gpt_pjit.config import Config
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.files import copy_folder, is_remote
from gpt_pjit.core.tokens import END_OF_TEXT, MANIFEST, check_vocabulary, load_tokenizer
from gpt_pjit.data.corpus import Bad, BadInput, Corpus, CorpusFile, check_files
from gpt_pjit.data.readers import Part, divide, pieces_of, read_items
from gpt_pjit.data.tokenize import Counts, TokenizeOptions, tokenize
from gpt_pjit.data.writer import DRAFT, partial_folder, write_file, writing

PROVENANCE = "source.json"  # in the set's folder: the files and settings that it was made of
# sentencepiece leaves out lines over 4,192 bytes and those with U+2585, its sign for the unknown:
# a line is cut after at most 1,000 characters, before a space if there is one, and at that sign.
LINE = re.compile("[^\u2585]{1,1000}(?=[ \u2585]|\\Z)|[^\u2585]{1,1000}", re.DOTALL)


@dataclass(frozen=True)
class Provenance:
    """All that the content of a set depends on."""

    settings: dict[str, str | float]
    files: list[CorpusFile]

    @classmethod
    def read(cls, folder: Path) -> Self:
        fields = json.loads((folder / PROVENANCE).read_bytes())
        return cls(fields["settings"], [CorpusFile(*file) for file in fields["files"]])

    def to_json(self) -> bytes:
        fields = {"settings": self.settings, "files": [astuple(file) for file in self.files]}
        return json.dumps(fields, indent=0).encode()

    def check_same(self, wanted: Self, folder: Path) -> None:
        """Raises ConfigError if the set in `folder` was made of anything but what is wanted."""
        differences = [
            f"{name} was {self.settings.get(name)!r}, is {value!r}"
            for name, value in wanted.settings.items()
            if self.settings.get(name) != value
        ]
        old, new = (
            {file.path: file.sha256 or file.size for file in p.files} for p in (self, wanted)
        )
        if list(old.values()) != list(new.values()):  # the names do not matter
            kinds = {
                "changed": [path for path in new if path in old and new[path] != old[path]],
                "added": [path for path in new if path not in old],
                "removed": [path for path in old if path not in new],
            }
            differences += [
                f"{len(paths)} {kind}: {paths[0]}{', ...' * (len(paths) > 1)}"
                for kind, paths in kinds.items()
                if paths
            ]
        if differences:
            problem = (
                f"it was made from other text or settings: {'; '.join(differences)}; delete the "
                "folder to tokenise again, or choose another"
            )
            raise ConfigError([problem], f"token dataset {folder}")


def prepare_text(config: Config, folder: Path) -> None:
    """For a run: `config.data.text` as a set in `folder`, tokenised where it is not there yet.

    For a bucket, it is tokenised in a temporary folder, and from the start again after a kill.
    """
    name = config.data.tokenizer
    if not name.startswith("bpe:"):
        tokenizer = load_tokenizer(name)
        check_vocabulary(tokenizer.name, tokenizer.vocab_size, config.model.vocab_size)
    prepare(Corpus.of_config(config.data), name, folder)


def prepare(
    corpus: Corpus, tokenizer: str, folder: Path, options: TokenizeOptions | None = None
) -> Counts | None:
    """Tokenises a corpus into a set in `folder`; None if it is there already.

    `tokenizer` is a file, `bytes`, or bpe:SIZE, trained on the corpus. A partially written set is
    resumed. Raises ConfigError, and leaves the set alone, if it was made of other text or settings.
    """
    options = options or TokenizeOptions()
    is_trained, partial = tokenizer.startswith("bpe:"), partial_folder(folder)
    if is_trained and not options.share.is_whole:
        problem = f"{tokenizer} is trained on all the text; train it first (train_tokenizer)"
        raise ConfigError([problem], f"--part={options.share}")
    stored, begun = stored_provenance(folder), begun_provenance(folder)
    loaded = None if is_trained else load_tokenizer(tokenizer)
    bad = BadInput(options.skip_errors)
    known = stored or begun
    files = check_files(corpus, bad, known.files if known else (), options.share)
    settings: dict[str, str | float] = {
        "tokenizer": loaded.sha256 if loaded and loaded.file else tokenizer,
        "validation_split": corpus.validation_split,
        "validation_fraction": corpus.validation_fraction,
        "text_column": corpus.column,
    }
    if not options.share.is_whole:
        settings["part"] = str(options.share)
    wanted = Provenance(settings, files)
    if stored:
        stored.check_same(wanted, folder)
        shutil.rmtree(partial, ignore_errors=True)  # left by a kill just after the end
        return None
    if begun:
        begun.check_same(wanted, partial)
    parts = divide(files, corpus, options.share)
    with writing(folder), tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "set" if is_remote(folder) else folder
        if not loaded:
            size = tokenizer.removeprefix("bpe:")
            path = Path(temporary) / f"bpe-{size}.json"
            texts = training_texts(parts, corpus, BadInput(options.skip_errors))
            train_bpe(texts, int(size), path, progress=sys.stderr.isatty())
            loaded = load_tokenizer(str(path))
        note = (PROVENANCE, wanted.to_json())
        counts = tokenize(out, parts, loaded, corpus, options, note)
        if out != folder:
            copy_folder(out, folder, last=MANIFEST)
    counts["skipped"] += bad.count
    return counts


def stored_provenance(folder: Path) -> Provenance | None:
    """What the set in `folder` was made of; None if there is no set."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if is_remote(folder) and not (folder / MANIFEST).exists():  # the copy was cut short
        return None
    try:
        return Provenance.read(folder)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        problem = f"holds files, but no {PROVENANCE} that says what text they were made from; "
        problem += "delete the folder, or choose another"
        raise ConfigError([problem], f"folder {folder}") from None


def begun_provenance(folder: Path) -> Provenance | None:
    """What the set in `folder` is made of that is not yet complete."""
    draft = partial_folder(folder) / DRAFT
    return Provenance.read(draft) if (draft / PROVENANCE).exists() else None


def training_texts(parts: list[Part], corpus: Corpus, bad: BadInput) -> Iterator[str]:
    """The texts of the training split, in pieces; raises ConfigError if there is none."""
    found = False
    items = (item for part in parts for item in read_items(part, corpus.column, can_cut=True))
    for item in items:
        problems: list[Bad] = []
        for piece in pieces_of(item, corpus.column, corpus.validation_fraction, True, problems):
            if piece.split == "train" and piece.text:
                found = True
                yield piece.text
        bad.report(problems)
    if not found:
        raise ConfigError(["no text to train on"], "input")


def train_bpe(texts: Iterable[str], vocab_size: int, path: Path, progress: bool = False) -> None:
    """Trains a byte-level BPE, with end-of-text as id 0, and writes it to `path`, a JSON file.

    The same texts give the same file, and any text survives encoding and decoding unchanged.
    """
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=progress,
    )
    model.train_from_iterator(texts, trainer)
    write_file(path, model.to_str(pretty=True).encode())


def train_unigram(texts: Iterable[str], vocab_size: int, path: Path) -> None:
    """Trains a sentencepiece unigram model, with end-of-text as id 0, and writes it to `path`.

    Any text without U+2581, its own sign for a space, survives: nothing is normalised, and unknown
    characters become bytes. Of more than a million lines, a million at random are used.
    """
    model = io.BytesIO()
    failures: list[BaseException] = []

    def guarded() -> Iterator[str]:  # sentencepiece turns its errors into RuntimeErrors
        try:
            yield from sentences(texts)
        except BaseException as error:
            failures.append(error)
            raise

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=guarded(),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            eos_id=0,
            unk_id=1,
            bos_id=-1,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            input_sentence_size=1_000_000,
            minloglevel=2,
        )
    except RuntimeError as error:
        if failures:
            raise failures[0] from None
        reason = str(error).rpartition("] ")[2]  # for a vocabulary too large for the text
        raise ConfigError([f"vocab_size={vocab_size}: {reason}"], "train_tokenizer") from None
    write_file(path, model.getvalue())


def sentences(texts: Iterable[str]) -> Iterator[str]:
    """Lines that are short enough for sentencepiece, with all the text but U+2585."""
    for text in texts:
        for line in text.splitlines(keepends=True):
            yield from LINE.findall(line)
