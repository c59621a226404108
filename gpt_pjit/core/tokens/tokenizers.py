"""Tokenizers: bytes, a Hugging Face `tokenizers` JSON file, or a sentencepiece model.

Text is always encoded as text: the spelling of a special token in a document does not become that
token, so the end-of-text id appears in a dataset only where a document ends.
"""

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import sentencepiece
import tokenizers

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.files import LARGEST_TOKENIZER, as_path, read_regular

END_OF_TEXT = "<|endoftext|>"
ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>")  # what others call it: Llama 3, OPT and Llama 2
UNICODE_FORMS: dict[str, Any] = {form: form for form in ("NFC", "NFD", "NFKC", "NFKD")}


class Tokenizer(Protocol):
    """Text to ids and back."""

    name: str
    file: str | None  # the name of its file in a dataset
    content: bytes  # of that file
    vocab_size: int
    eot_id: int
    can_cut: bool  # whether a text may be cut between words without changing its ids

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """One integer array for each text, without end-of-text."""
        ...

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def changes(self, text: str) -> bool:
        """Whether the normaliser changes `text`, so decoding gives a different text."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of `ids`; end-of-text and ids above the vocabulary (padding) are skipped."""
        ...


class BytesTokenizer(Tokenizer):
    """The 256 bytes of UTF-8, and 256 for end-of-text."""

    name = "bytes"
    file = None
    content = b"gpt_pjit bytes: ids 0 to 255 are the bytes of UTF-8 text, 256 is end-of-text"
    vocab_size = 257
    eot_id = 256
    can_cut = True

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8) for text in texts]

    def changes(self, text: str) -> bool:
        return False

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json`."""

    file = "tokenizer.json"

    def __init__(self, name: str, content: bytes):
        self.name, self.content = name, content
        self._model = tokenizers.Tokenizer.from_buffer(content)
        self._model.no_truncation()  # files of encoder models cut texts at 512 tokens
        self._model.no_padding()
        self._model.encode_special_tokens = True  # as text
        vocabulary = self._model.get_vocab()
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        end = next((name for name in ENDS if name in vocabulary), None)
        if end is None:
            added = self._model.get_added_tokens_decoder().values()
            special = ", ".join(token.content for token in added if token.special) or "none"
            names = " or ".join(ENDS)
            problem = f"has no token {names} to end documents; its special tokens: {special}"
            raise ConfigError([problem], f"tokenizer {name}")
        self.eot_id = vocabulary[end]
        self.can_cut = _splits_into_words(json.loads(content))

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        try:
            encodings = self._model.encode_batch_fast(texts, add_special_tokens=False)
        except BaseException as error:  # a panic of Rust, for a regex that backtracks for ever
            if type(error).__name__ != "PanicException":
                raise
            raise ConfigError([f"fails on this text: {error}"], f"tokenizer {self.name}") from None
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def changes(self, text: str) -> bool:
        normalizer = self._model.normalizer
        form = type(normalizer).__name__
        if form in UNICODE_FORMS:  # ten times faster, equal except for the newest characters
            return not unicodedata.is_normalized(UNICODE_FORMS[form], text)
        return normalizer is not None and normalizer.normalize_str(text) != text

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._model.decode([int(i) for i in ids])  # skips unknown ids


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece `.model`; end-of-text is its end-of-sentence id."""

    file = "tokenizer.model"
    can_cut = False  # it may put a space before each piece

    def __init__(self, name: str, content: bytes):
        self.name, self.content = name, content
        self._model = sentencepiece.SentencePieceProcessor()
        self._model.LoadFromSerializedProto(content)
        self.vocab_size = self._model.vocab_size()
        self.eot_id = self._model.eos_id()
        if self.eot_id < 0:
            problem = "has no end-of-sentence id to end documents; train it with --eos_id"
            raise ConfigError([problem], f"tokenizer {name}")

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return [np.array(ids, np.uint32) for ids in self._model.encode(texts)]

    def changes(self, text: str) -> bool:
        return self._model.normalize(text).replace("\u2581", " ").strip() != text.strip()

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._model.decode([int(i) for i in ids if i < self.vocab_size])


def load_tokenizer(spec: str) -> Tokenizer:
    """The tokenizer `bytes`, FILE.json or FILE.model."""
    if spec == "bytes":
        return BytesTokenizer()
    try:
        content = read_regular(as_path(spec), LARGEST_TOKENIZER)
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
        raise ConfigError([problem], f"tokenizer {spec}") from None
    return tokenizer_from_bytes(Path(spec).name, content)


def saved_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer whose file is in `folder` under its own name; bytes if there is none."""
    for kind in (HuggingFaceTokenizer, SentencePieceTokenizer):
        if (folder / kind.file).exists():
            return load_tokenizer(str(folder / kind.file))
    return BytesTokenizer()


def tokenizer_from_bytes(name: str, content: bytes) -> Tokenizer:
    """The tokenizer whose file, called `name`, holds `content`."""
    kinds = {".json": HuggingFaceTokenizer, ".model": SentencePieceTokenizer}
    kind = kinds.get(Path(name).suffix)
    if kind is None:
        raise ConfigError(["is not bytes, FILE.json or FILE.model"], f"tokenizer {name}")
    try:
        return kind(name, content)
    except ConfigError:
        raise
    except Exception as error:  # `tokenizers` raises nothing more special
        problem = f"is not a valid {kind.file} or is damaged: {error}"
        raise ConfigError([problem], f"tokenizer {name}") from None


def _splits_into_words(fields: dict[str, Any]) -> bool:
    """Whether a `tokenizer.json` is byte-level BPE within words: no token spans two."""
    pre = fields.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers") or [pre]
    levels = [step for step in steps if step.get("type") == "ByteLevel"]
    by_regex = steps[0].get("type") == "Split" or any(s.get("use_regex", True) for s in levels)
    plain = not any(level["add_prefix_space"] for level in levels)
    normalizer = (fields.get("normalizer") or {}).get("type", "NFC")
    return bool(levels) and by_regex and plain and normalizer in UNICODE_FORMS
