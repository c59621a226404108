"""Files of every kind, read in items of bounded size, and the documents in those.

A text file is one document. JSON lines, Parquet files and datasets of the Hugging Face hub hold
many, with the text in one column. Text and JSON lines may be packed by gzip or zstd.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.data.files import HUB, InputError, import_library, kind_of, text_blocks, unpacked

PIECE = 2**16  # characters of a document encoded at a time
ROWS = 128  # of a table read at a time


@dataclass(frozen=True)
class Part:
    """Bytes `start` to `stop` of a file, for one split, or "" where its documents are divided.

    `ends` says whether the document of a text file ends there.
    """

    path: str
    start: int
    stop: int
    split: str  # train | validation | ""
    ends: bool


@dataclass(frozen=True)
class Lines:
    """Whole lines of JSON, the first of them number `first` in the file."""

    path: str
    first: int
    data: bytes
    read: int  # bytes of the file, so far


@dataclass(frozen=True)
class Rows:
    """Values of the text column, the first of them number `first` in the table."""

    path: str
    first: int
    texts: list[Any]
    read: int


@dataclass(frozen=True)
class Piece:
    """Text of a document; `last` if the document ends with it, `ends` if end-of-text follows."""

    place: str
    text: str
    split: str
    last: bool
    ends: bool
    document_bytes: int
    read: int


@dataclass(frozen=True)
class Bad:
    """Documents that cannot be read, and why."""

    problem: str
    documents: int = 1
    read: int = 0


Item = Lines | Rows | Piece | Bad


def read_items(part: Part, column: str, can_cut: bool) -> Iterator[Item]:
    """The content of a file in items of bounded size; the same items each time."""
    kind = kind_of(part.path)
    if kind == "text":
        return _pieces(part, can_cut)
    return {"lines": _lines, "parquet": _parquet, "hub": _hub}[kind](part, column)


def pieces_of(
    item: Item, column: str, validation_fraction: float, can_cut: bool, bad: list[Bad]
) -> Iterator[Piece]:
    """The pieces of an item's documents; adds to `bad` the documents that cannot be read."""
    if isinstance(item, Piece):
        yield item
        return
    if isinstance(item, Bad):
        bad.append(item)
        return
    is_line = isinstance(item, Lines)
    values = item.data.split(b"\n") if isinstance(item, Lines) else item.texts
    for number, value in enumerate(values, item.first):
        if is_line and not value.strip():
            continue
        place = f"{item.path}:{number}"
        try:
            text = _text(value, is_line, column, number)
            content = text.encode()
        except (ValueError, RecursionError) as error:
            bad.append(Bad(f"{place}: {_in_words(error)}"))
            continue
        split = split_by_hash(hashlib.sha256(content).hexdigest(), validation_fraction)
        *parts, last = cut_document(text) if can_cut else [text]
        for part in parts:
            yield Piece(place, part, split, False, False, len(content), 0)
        yield Piece(place, last, split, True, True, len(content), 0)


def split_by_hash(sha256: str, fraction: float) -> str:
    """The split of a document whose UTF-8 text has this SHA-256."""
    return "validation" if int(sha256[:16], 16) < fraction * 2**64 else "train"


def cut_text(blocks: Iterator[str]) -> Iterator[str]:
    """Text in pieces of bounded length that have the same tokens as the whole text.

    This holds for byte-level BPE within words: a piece ends after a line feed, or else before a
    space, between two words. Only 64 KiB without either are cut inside a word.
    """
    rest = ""
    for text in blocks:
        rest += text
        cut = _between_words(rest, "\n") or _between_words(rest, " ") or len(rest)
        yield rest[:cut]
        rest = rest[cut:]
    if rest:
        yield rest


def cut_document(text: str) -> Iterator[str]:
    """`cut_text` for a text in memory."""
    if len(text) <= PIECE:
        return iter([text])
    return cut_text(text[i : i + PIECE] for i in range(0, len(text), PIECE))


def _between_words(text: str, separator: str) -> int:
    """Where to cut at the last `separator` with no white space beside it; 0 if there is none."""
    at = text.rfind(separator, 1, -1)
    while at > 0 and (text[at - 1].isspace() or text[at + 1].isspace()):
        at = text.rfind(separator, 1, at)
    return at + (separator == "\n") if at > 0 else 0


def _pieces(part: Part, can_cut: bool) -> Iterator[Piece]:
    size, read = part.stop - part.start, 0
    blocks = text_blocks(part.path, part.start, part.stop)
    try:
        texts = cut_text(blocks) if can_cut else iter(["".join(blocks)])
        text = next(texts, "")
        for following in texts:
            read += len(text)
            yield Piece(part.path, text, part.split, False, False, size, min(read, size))
            text = following
    except (InputError, OSError) as error:  # it has changed since it was checked
        raise ConfigError([str(error)], "input") from None
    yield Piece(part.path, text, part.split, True, part.ends, size, size)


def _lines(part: Part, _: str) -> Iterator[Item]:
    path = part.path
    rest: list[bytes] = []  # the beginnings of a line
    first, read, problem = 1, 0, ""
    try:
        for block, read in unpacked(path, part.start, part.stop):
            cut = block.rfind(b"\n") + 1
            if cut:
                data = b"".join([*rest, block[:cut]])
                yield Lines(path, first, data, read)
                first += data.count(b"\n")
                rest = []
            rest.append(block[cut:])
    except (InputError, OSError) as error:
        problem = f"{error}, after line {first - 1}"
    last = b"".join(rest)
    if last and not (problem and _is_cut(last)):
        yield Lines(path, first, last, read)
    if problem:
        yield Bad(problem, read=read)


def _parquet(part: Part, column: str) -> Iterator[Item]:
    parquet = import_library("pyarrow.parquet", "to read .parquet files")
    path, row = part.path, 0
    try:
        file = parquet.ParquetFile(path, page_checksum_verification=True)
    except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds
        yield Bad(f"{path}: cannot be read: {error}")
        return
    with file:
        names, rows = file.schema_arrow.names, file.metadata.num_rows
        if column not in names:
            yield Bad(f"{path}: has no column {column!r}, but {', '.join(names)}", rows)
            return
        for group in range(file.num_row_groups):
            stop = row + file.metadata.row_group(group).num_rows
            try:
                for batch in file.iter_batches(ROWS, row_groups=[group], columns=[column]):
                    texts = _column_values(batch.column(0))
                    yield Rows(path, row + 1, texts, part.stop * (row + len(texts)) // rows)
                    row += len(texts)
            except (OSError, ValueError) as error:
                yield Bad(f"{path}: rows {row + 1} to {stop} cannot be read: {error}", stop - row)
                row = stop


def _column_values(array: Any) -> list[Any]:
    """The values of a column; text that is not UTF-8 stays bytes."""
    try:
        return array.to_pylist()
    except UnicodeDecodeError:
        values = []
        for value in array.cast("large_binary").to_pylist():
            with contextlib.suppress(UnicodeDecodeError, AttributeError):
                value = value.decode()
            values.append(value)
        return values


def _hub(part: Part, column: str) -> Iterator[Item]:
    texts: list[Any] = []
    number = 0
    for number, row in enumerate(_hub_rows(part.path), 1):
        if column in row:
            texts.append(row[column])
        if len(texts) == ROWS or column not in row:
            first = number - len(texts) + (column in row)
            yield Rows(part.path, first, texts, 0)
            texts = []
        if column not in row:
            names = ", ".join(row)
            yield Bad(f"{part.path}:{number}: has no column {column!r}, but {names}")
    yield Rows(part.path, number - len(texts) + 1, texts, 0)


def _hub_rows(path: str) -> Iterator[dict[str, Any]]:
    """The rows of the training split of `hf:NAME` or `hf:NAME:CONFIG`, as they arrive."""
    datasets = import_library("datasets", f"to read {path}")
    name, _, config = path.removeprefix(HUB).partition(":")
    try:
        yield from datasets.load_dataset(name, config or None, split="train", streaming=True)
    except Exception as error:  # of many kinds: of the network, the hub, the library
        problem = f"{path}: the `datasets` library cannot read it: {error}"
        raise ConfigError([problem], "input") from None


def _text(value: Any, is_line: bool, column: str, number: int) -> str:
    """The text of a line of JSON, or of a value of a table."""
    if is_line:
        if number == 1:
            value = value.removeprefix(codecs.BOM_UTF8)
        record = json.loads(value.decode())
        if not isinstance(record, dict):
            raise ValueError(f"is {type(record).__name__}, not an object")
        if column not in record:
            raise ValueError(f"has no field {column!r}, but {', '.join(record) or 'none'}")
        value = record[column]
    elif isinstance(value, bytes):
        value.decode()
    if not isinstance(value, str):
        raise ValueError(f"{column!r} is {type(value).__name__}, not text")
    return value


def _in_words(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8 ({error.reason})"
    if isinstance(error, UnicodeEncodeError):
        return f"character {error.start} of the text is half of a surrogate pair"
    if isinstance(error, json.JSONDecodeError):
        return f"is not JSON: {error.msg} at column {error.colno}"
    return str(error)


def _is_cut(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return False
