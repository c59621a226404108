"""Reading files of any kind in pieces of bounded size, which workers turn into documents.

A plain text file is one document. Files of JSON lines, Parquet files and datasets of the Hugging
Face hub hold many, whose text is in one column.
"""

from __future__ import annotations

import gzip
import importlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.data.corpus import HUB, Part, kind_of, text_blocks

BLOCK = 2**18  # bytes of a file read at a time
ROWS = 128  # of a table read at a time
PIECE = 2**16  # characters of a document encoded at a time


@dataclass(frozen=True)
class Lines:
    """Whole lines of JSON, from line `first` of the file on."""

    path: str
    first: int
    data: bytes
    read: int  # bytes of the file, so far


@dataclass(frozen=True)
class Rows:
    """Values of the text column, from row `first` of the table on."""

    path: str
    first: int
    texts: list[Any]
    read: int


@dataclass(frozen=True)
class Piece:
    """Text of a document; `last` if the document is over then, `ends` if with end-of-text."""

    path: str
    text: str
    split: str
    last: bool
    ends: bool
    document_bytes: int
    read: int


@dataclass(frozen=True)
class Bad:
    """What cannot be read, in words."""

    problem: str
    read: int = 0


Item = Lines | Rows | Piece | Bad


def read_items(part: Part, column: str, can_cut: bool) -> Iterator[Item]:
    """What a file holds, in items of bounded size; the same items each time."""
    kind = kind_of(part.path)
    if kind == "text":
        return _pieces(part, can_cut)
    return {"lines": _lines, "parquet": _parquet, "hub": _hub}[kind](part.path, column)


def cut_text(blocks: Iterator[str]) -> Iterator[str]:
    """Text in pieces of bounded length, whose tokens are those of the whole text.

    That holds for byte-level BPE: a piece ends after a line feed, or else before a space, between
    two words, where it splits text in any case. Only 64 KiB with neither are cut in a word.
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


def _pieces(part: Part, can_cut: bool) -> Iterator[Piece]:
    size, read = part.stop - part.start, 0
    blocks = text_blocks(part.path, part.start, part.stop)
    texts = cut_text(blocks) if can_cut else iter(["".join(blocks)])
    text = next(texts, "")
    for following in texts:
        read += len(text)
        yield Piece(part.path, text, part.split, False, False, size, read)
        text = following
    yield Piece(part.path, text, part.split, True, part.ends, size, size)


def _lines(path: str, _: str) -> Iterator[Item]:
    rest: list[bytes] = []  # the beginnings of a line
    first, read = 1, 0
    try:
        for block, read in _blocks(path):
            cut = block.rfind(b"\n") + 1
            if cut:
                data = b"".join([*rest, block[:cut]])
                yield Lines(path, first, data, read)
                first += data.count(b"\n")
                rest = []
            rest.append(block[cut:])
        if any(rest):
            yield Lines(path, first, b"".join(rest), read)
    except (EOFError, zlib.error, OSError) as error:
        yield Bad(f"{path}:{first}: cannot be read on from there: {error}; copy the file again")


def _blocks(path: str) -> Iterator[tuple[bytes, int]]:
    """The content of a file, unpacked, with how many bytes of the file were read."""
    with open(path, "rb") as file:
        if path.endswith(".zst"):
            yield from _zstd_blocks(file)
            return
        stream = gzip.GzipFile(fileobj=file) if path.endswith(".gz") else file
        while block := stream.read(BLOCK):
            yield block, file.tell()


def _zstd_blocks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Frame after frame: the library's own stream ends silently where a file is cut short."""
    zstandard = _import("zstandard", "to read .zst files")
    frame = None
    while block := file.read(BLOCK):
        while block:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                yield frame.decompress(block), file.tell()
            except zstandard.ZstdError as error:
                raise OSError(str(error)) from None
            block = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame:
        raise EOFError("Compressed file ended before the end-of-stream marker was reached")


def _parquet(path: str, column: str) -> Iterator[Item]:
    parquet = _import("pyarrow.parquet", "to read .parquet files")
    row, size = 0, os.path.getsize(path)
    try:
        with parquet.ParquetFile(path) as file:
            names, rows = file.schema_arrow.names, file.metadata.num_rows
            if column not in names:
                yield Bad(f"{path}: has no column {column!r}, but {', '.join(names)}")
                return
            for batch in file.iter_batches(batch_size=ROWS, columns=[column]):
                texts = batch.column(0).to_pylist()
                yield Rows(path, row + 1, texts, size * (row + len(texts)) // rows)
                row += len(texts)
    except (OSError, ValueError) as error:  # those of pyarrow are of these kinds
        problem = f"{path}: row {row + 1}: cannot be read on from there: {error}"
        yield Bad(f"{problem}; copy the file again")


def _hub(path: str, column: str) -> Iterator[Item]:
    rows, first = [], 1
    for row in open_hub(path):
        if column not in row:
            yield Bad(f"{path}: has no column {column!r}, but {', '.join(row)}")
            return
        rows.append(row[column])
        if len(rows) == ROWS:
            yield Rows(path, first, rows, 0)
            rows, first = [], first + ROWS
    yield Rows(path, first, rows, 0)


def open_hub(path: str) -> Any:
    """The rows of the training split of `hf:NAME` or `hf:NAME:CONFIG`, as they arrive."""
    datasets = _import("datasets", f"to read {path}")
    name, _, config = path.removeprefix(HUB).partition(":")
    try:
        return datasets.load_dataset(name, config or None, split="train", streaming=True)
    except Exception as error:  # of many kinds: of the network, the hub, the library
        problem = f"{path}: the `datasets` library cannot open it: {error}; check name and network"
        raise ConfigError([problem], "data.text") from None


def _import(name: str, purpose: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        problem = f"{package} is needed {purpose}; pip install 'gpt_pjit[corpora]'"
        raise ConfigError([problem], "data.text") from None


def _between_words(text: str, separator: str) -> int:
    """Where to cut at the last `separator` with no white space beside it; 0 if there is none."""
    at = text.rfind(separator, 1, -1)
    while at > 0 and (text[at - 1].isspace() or text[at + 1].isspace()):
        at = text.rfind(separator, 1, at)
    return at + (separator == "\n") if at > 0 else 0
