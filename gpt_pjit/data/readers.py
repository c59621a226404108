"""The documents of a corpus: each for one split, and read in items of bounded size.

A text file is one document. JSON lines, Parquet files and datasets of the Hugging Face hub hold
many, with the text in one column.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.data.corpus import (
    HUB,
    SKIPPED,
    Bad,
    Corpus,
    CorpusFile,
    InputError,
    import_library,
    is_packed,
    kind_of,
    text_blocks,
    unpacked,
)
from gpt_pjit.data.share import WHOLE, Share

PIECE = 2**16  # characters of a document encoded at a time
ROWS = 128  # of a table read at a time


@dataclass(frozen=True)
class Part:
    """Bytes `start` to `stop` of a file, for one split, or "" where its documents are divided.

    `ends` says whether the document of a text file ends there, `taken` at which bytes after `start`
    the items begin that are read.
    """

    path: str
    start: int
    stop: int
    split: str  # train | validation | ""
    ends: bool
    taken: range = range(sys.maxsize)

    @property
    def size(self) -> int:
        """Bytes of the items that are read, nearly."""
        return min(self.stop - self.start, len(self.taken))


@dataclass(frozen=True)
class Rows:
    """Lines of JSON, or rows of a table, the first of them number `first` in the file."""

    path: str
    first: int
    rows: list[Any]  # bytearray | dict
    read: int  # bytes of the file, so far


@dataclass(frozen=True)
class Piece:
    """Text of a document: all of it, or a piece that more pieces follow unless it `ends`."""

    place: str
    text: str
    split: str
    ends: bool
    document_bytes: int
    read: int = 0


Item = Rows | Piece | Bad


def divide(files: list[CorpusFile], corpus: Corpus, share: Share = WHOLE) -> list[Part]:
    """The parts of all files: each document to a split by its hash, or the tail to validation.

    Of a share of the corpus, the files that lie in it.
    """
    if corpus.validation_split == "tail":
        return _split_tail(files, corpus.validation_fraction)
    parts = []
    for file, taken in zip(files, share.ranges([file.size for file in files]), strict=True):
        if not taken or file.sha256 == SKIPPED:
            continue
        is_text = kind_of(file.path) == "text"
        split = split_by_hash(file.sha256, corpus.validation_fraction) if is_text else ""
        parts.append(Part(file.path, 0, file.size, split, True, taken))
    return parts


def split_by_hash(sha256: str, fraction: float) -> str:
    """The split of a document whose UTF-8 text has this SHA-256: the same if others are added."""
    return "validation" if int(sha256[:16], 16) < fraction * 2**64 else "train"


def _split_tail(files: list[CorpusFile], fraction: float) -> list[Part]:
    """The last `fraction` of all bytes is for validation; a cut never splits a character."""
    for file in files:
        if kind_of(file.path) != "text" or is_packed(file.path):
            constraint = f"cannot cut {file.path}, which is not plain text"
            problem = Problem("data.validation_split", "tail", constraint, "use documents")
            raise ConfigError([problem])
    cut = int(sum(file.size for file in files) * (1 - fraction))
    parts = []
    for file in files:
        at = min(max(cut, 0), file.size)
        if 0 < at < file.size:
            at = _character_start(file.path, at)
        if at or (cut > 0 and not file.size):
            parts.append(Part(file.path, 0, at, "train", at == file.size))
        if at < file.size or cut <= 0:
            parts.append(Part(file.path, at, file.size, "validation", True))
        cut -= file.size
    return parts


def _character_start(path: str, at: int) -> int:
    """The last byte at or before `at` that begins a character."""
    with open(path, "rb") as file:
        file.seek(max(at - 3, 0))
        head = file.read(at - file.tell() + 1)
    while at > 0 and head[-1] & 0xC0 == 0x80:  # the middle of a character
        head, at = head[:-1], at - 1
    return at


def read_items(part: Part, column: str, can_cut: bool) -> Iterator[Item]:
    """The content of a file in items of bounded size, the same each time: those in `taken`."""
    at, last = 0, max(part.stop - part.start - 1, 0)
    for item in _all_items(part, column, can_cut):
        if at >= part.taken.stop:
            return
        if at >= part.taken.start:
            yield item
        at = min(max(at, item.read), last)


def _all_items(part: Part, column: str, can_cut: bool) -> Iterator[Item]:
    match kind_of(part.path):
        case "text":
            return _pieces(part, can_cut)
        case "lines":
            return _lines(part)
        case "parquet":
            return _parquet(part, column)
    return _hub(part, column)


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
    for number, row in enumerate(item.rows, item.first):
        if isinstance(row, bytearray) and not row.strip():
            continue
        place = f"{item.path}:{number}"
        try:
            text = _text(row, column)
            content = text.encode()
        except (ValueError, RecursionError) as error:
            bad.append(Bad(f"{place}: {error}"))
            continue
        split = split_by_hash(hashlib.sha256(content).hexdigest(), validation_fraction)
        pieces = [text]
        if can_cut and len(text) > PIECE:
            pieces = list(cut_text(text[i : i + PIECE] for i in range(0, len(text), PIECE)))
        for i, piece in enumerate(pieces, 1):
            yield Piece(place, piece, split, i == len(pieces), len(content))


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
            yield Piece(part.path, text, part.split, False, size, min(read, size))
            text = following
    except (InputError, OSError) as error:  # it has changed since it was checked
        raise ConfigError([str(error)], "input") from None
    yield Piece(part.path, text, part.split, part.ends, size, size)


def _lines(part: Part) -> Iterator[Item]:
    rest = bytearray()  # the beginning of a line
    first, read, problem = 1, 0, ""
    try:
        for block, read in unpacked(part.path, part.start, part.stop):
            rest += block
            if b"\n" in block:
                *lines, rest = rest.split(b"\n")
                yield Rows(part.path, first, lines, read)
                first += len(lines)
    except (InputError, OSError) as error:
        problem = f"{error}, after line {first - 1}"
    if rest and not (problem and _is_cut(rest)):
        yield Rows(part.path, first, [rest], read)
    if problem:
        yield Bad(problem, read=read)


def _is_cut(line: bytearray) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return False


def _parquet(part: Part, column: str) -> Iterator[Item]:
    parquet = import_library("pyarrow.parquet", "to read .parquet files")
    path, row = part.path, 0
    try:
        file = parquet.ParquetFile(path, page_checksum_verification=True)
    except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds
        yield Bad(f"{path}: cannot be read: {error}")
        return
    with file:
        names, total = file.schema_arrow.names, file.metadata.num_rows
        if column not in names:
            yield Bad(f"{path}: has no field {column!r}, but {', '.join(names)}", total)
            return
        for group in range(file.num_row_groups):
            stop = row + file.metadata.row_group(group).num_rows
            try:
                for batch in file.iter_batches(ROWS, row_groups=[group], columns=[column]):
                    rows = [{column: value} for value in _column_values(batch.column(0))]
                    yield Rows(path, row + 1, rows, part.stop * (row + len(rows)) // total)
                    row += len(rows)
            except (OSError, ValueError) as error:
                yield Bad(f"{path}: rows {row + 1} to {stop} cannot be read: {error}", stop - row)
                row = stop


def _column_values(array: Any) -> list[Any]:
    """The values of a column, as bytes if some are not UTF-8."""
    try:
        return array.to_pylist()
    except UnicodeDecodeError:
        return array.cast("large_binary").to_pylist()


def _hub(part: Part, column: str) -> Iterator[Item]:
    rows, first = _hub_rows(part.path), 1
    while some := list(islice(rows, ROWS)):
        yield Rows(part.path, first, [{column: r[column]} if column in r else r for r in some], 0)
        first += len(some)


def _hub_rows(path: str) -> Iterator[dict[str, Any]]:
    """The rows of the training split of `hf:NAME` or `hf:NAME:CONFIG`, as they arrive."""
    datasets = import_library("datasets", f"to read {path}")
    name, _, config = path.removeprefix(HUB).partition(":")
    try:
        yield from datasets.load_dataset(name, config or None, split="train", streaming=True)
    except Exception as error:  # of many kinds: of the network, the hub, the library
        problem = f"{path}: the `datasets` library cannot read it: {error}"
        raise ConfigError([problem], "input") from None


def _text(row: Any, column: str) -> str:
    """The text of a line of JSON, or of a row of a table."""
    try:
        record = json.loads(row) if isinstance(row, bytearray) else row
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(record, dict):
        raise ValueError(f"is {type(record).__name__}, not an object")
    if column not in record:
        raise ValueError(f"has no field {column!r}, but {', '.join(record) or 'none'}")
    value = record[column]
    if isinstance(value, bytes):
        value = value.decode()
    if not isinstance(value, str):
        raise ValueError(f"{column!r} is {type(value).__name__}, not text")
    return value
