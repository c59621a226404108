"""Training tokenizers on the texts of a corpus."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
import tokenizers

from gpt_pjit.core.tokens import END_OF_TEXT


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
    model.save(str(path))


def train_unigram(texts: Iterable[str], vocab_size: int, path: Path) -> None:
    """Trains a sentencepiece unigram model, with end-of-text as id 0, and writes it to `path`.

    Any text without U+2581, its own sign for a space, survives: nothing is normalised, and unknown
    characters become bytes. Of more than a million lines, a million at random are used.
    """
    lines = (line[:1000] for text in texts for line in text.splitlines(keepends=True))
    model = io.BytesIO()
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
    path.write_bytes(model.getvalue())
