"""Training tokenizers on the texts of a corpus."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece
import tokenizers

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens import END_OF_TEXT
from gpt_pjit.data.corpus import BadInput, Corpus
from gpt_pjit.data.readers import Bad, Part, pieces_of, read_items
from gpt_pjit.data.writer import write_file

# sentencepiece leaves out lines over 4,192 bytes and those with U+2585, its sign for the unknown:
# a line is cut after at most 1,000 characters, before a space if there is one, and at that sign.
LINE = re.compile("[^\u2585]{1,1000}(?=[ \u2585]|\\Z)|[^\u2585]{1,1000}", re.DOTALL)


def training_texts(parts: list[Part], corpus: Corpus, bad: BadInput) -> Iterator[str]:
    """The texts of the training split, in pieces; raises ConfigError if there is none."""
    found = False
    for part in parts:
        for item in read_items(part, corpus.column, can_cut=True):
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
        _train_unigram(guarded(), vocab_size, model)
    except RuntimeError as error:
        if failures:
            raise failures[0] from None
        reason = str(error).rpartition("] ")[2]  # for a vocabulary too large for the text
        raise ConfigError([f"vocab_size={vocab_size}: {reason}"], "train_tokenizer") from None
    write_file(path, model.getvalue())


def _train_unigram(lines: Iterator[str], vocab_size: int, model: io.BytesIO) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
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


def sentences(texts: Iterable[str]) -> Iterator[str]:
    """Lines that are short enough for sentencepiece, with all the text but U+2585."""
    for text in texts:
        for line in text.splitlines(keepends=True):
            yield from LINE.findall(line)
