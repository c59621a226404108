"""From items of input to the texts of documents, each in one piece or several, with its split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from gpt_pjit.data.corpus import Part, split_by_hash
from gpt_pjit.data.readers import Bad, Item, Lines, Piece, Rows, cut_document, read_items


def pieces_of(
    item: Item, column: str, validation_fraction: float, can_cut: bool, problems: list[str]
) -> Iterator[Piece]:
    """The pieces of an item's documents; what is no document is told in `problems`."""
    if isinstance(item, Piece):
        yield item
    elif isinstance(item, Bad):
        problems.append(item.problem)
    else:
        for number, value in enumerate(_values(item), item.first):
            if isinstance(value, bytes) and (not value or value.isspace()):
                continue
            place = f"{item.path}:{number}"
            try:
                text = _text(value, isinstance(item, Lines), column)
                content = text.encode()
            except ValueError as error:
                problems.append(f"{place}: {_in_words(error)}")
                continue
            split = split_by_hash(hashlib.sha256(content).hexdigest(), validation_fraction)
            parts = list(cut_document(text)) if can_cut else [text]
            for part in parts[:-1]:
                yield Piece(place, part, split, False, False, len(content), 0)
            yield Piece(place, parts[-1], split, True, True, len(content), 0)


def training_texts(parts: list[Part], column: str, validation_fraction: float) -> Iterator[str]:
    """The texts of the training split, in pieces, for training a tokenizer; skips bad ones."""
    for part in parts:
        for item in read_items(part, column, can_cut=True):
            for piece in pieces_of(item, column, validation_fraction, True, []):
                if piece.split == "train":
                    yield piece.text


def _values(item: Lines | Rows) -> list[Any]:
    return item.texts if isinstance(item, Rows) else item.data.split(b"\n")


def _text(value: Any, is_line: bool, column: str) -> str:
    """The text of a line of JSON, or of a value of a table."""
    if is_line:
        record = json.loads(value.decode())
        if not isinstance(record, dict):
            raise ValueError(f"is {type(record).__name__}, not an object")
        if column not in record:
            raise ValueError(f"has no field {column!r}, but {', '.join(record) or 'none'}")
        value = record[column]
    if not isinstance(value, str):
        raise ValueError(f"{column!r} is {type(value).__name__}, not text")
    return value


def _in_words(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} of the line is not UTF-8 ({error.reason})"
    if isinstance(error, UnicodeEncodeError):
        return f"character {error.start} of the text is half of a surrogate pair"
    if isinstance(error, json.JSONDecodeError):
        return f"is not JSON: {error.msg} at column {error.colno}"
    return str(error)
