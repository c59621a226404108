"""Reading files: their kind, unpacking, decoding, and where they are damaged."""

from __future__ import annotations

import codecs
import contextlib
import importlib
import re
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, BinaryIO

from gpt_pjit.core.errors import ConfigError

HUB = "hf:"  # begins the name of a dataset of the Hugging Face hub, in place of a file's path
BLOCK = 2**16  # bytes of a file read at a time
PACKED_BLOCK = 2**14


class InputError(Exception):
    """A file cannot be read, or only up to some place."""


def kind_of(path: str) -> str:
    """Hub | lines (of JSON) | parquet | text: by name, or by content if the name does not tell."""
    if path.startswith(HUB):
        return "hub"
    name = path.lower()
    plain = name.removesuffix(".gz").removesuffix(".zst")
    packed = plain != name
    if plain.endswith((".jsonl", ".ndjson")) or (packed and plain.endswith(".json")):
        return "lines"
    if plain.endswith(".parquet"):
        return "parquet"
    if plain.endswith(".json") or (packed and not plain.endswith(".txt")):
        return "lines" if _begins_with_record(path) else "text"
    return "text"


def is_packed(path: str) -> bool:
    with open(path, "rb") as file:
        return _decompressor(path, file) is not None


def text_blocks(path: str, start: int, stop: int) -> Iterator[str]:
    """The text of bytes `start` to `stop` of a file without its byte-order mark.

    Raises InputError, with the line, where it is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    done, line, is_first = start, 1, start == 0
    for block in chain((block for block, _ in unpacked(path, start, stop)), [b""]):
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            at = done - pending + error.start
            line += error.object.count(b"\n", 0, error.start)
            problem = f"{path}:{line}: byte {at} is not UTF-8 ({error.reason})"
            raise InputError(problem) from None
        done += len(block)
        line += text.count("\n")
        if text:
            yield text.removeprefix("\ufeff") if is_first else text
            is_first = False


def _begins_with_record(path: str) -> bool:
    """Whether a file begins with a JSON object on one line, not spread over several."""
    with open(path, "rb") as file:
        stop = file.seek(0, 2)
    try:
        head, _ = next(unpacked(path, 0, stop), (b"", 0))
    except (InputError, OSError):
        return False
    return bool(re.match(rb"\s*\{[ \t]*\"", head.removeprefix(codecs.BOM_UTF8)))


def unpacked(path: str, start: int, stop: int) -> Iterator[tuple[bytes, int]]:
    """The content of a file, unpacked, in blocks, with how many bytes of the file were read.

    Raises InputError at damage, after all the content before it.
    """
    with open(path, "rb") as file:
        new = _decompressor(path, file)
        if new:
            yield from _frames(file, new)
            return
        file.seek(start)
        while start < stop:
            block = file.read(min(BLOCK, stop - start))
            if not block:
                raise InputError(f"{path}: shrank to {start} bytes while it was read")
            start += len(block)
            yield block, start


def _decompressor(path: str, file: Any) -> Callable[[], Any] | None:
    """Makes a decompressor of a packed file; None if it is not packed."""
    head = file.peek(4)[:4]
    if head[:2] == b"\x1f\x8b" or path.lower().endswith(".gz"):
        return lambda: zlib.decompressobj(31)
    # The second is a skippable frame, with which some tools begin.
    if head == b"\x28\xb5\x2f\xfd" or head[1:] == b"\x2a\x4d\x18" or path.lower().endswith(".zst"):
        zstandard = import_library("zstandard", f"to read {path}")
        return lambda: zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
    return None


def _frames(file: BinaryIO, new: Callable[[], Any]) -> Iterator[tuple[bytes, int]]:
    """The content of all frames, or members: a file may hold several."""
    frame, begin = None, 0
    while block := file.read(PACKED_BLOCK):
        while block:
            if frame is None:
                block = block.lstrip(b"\0")  # gzip allows padding
                frame, begin = new() if block else None, file.tell() - len(block)
                continue
            try:
                data = frame.decompress(block)
            except Exception as error:  # zlib.error or zstandard.ZstdError
                read = file.tell()
                yield _before_damage(file, new, begin, read - len(block)), read
                raise InputError(f"{file.name}: is damaged ({error})") from None
            if data:
                yield data, file.tell()
            block, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame:
        raise InputError(f"{file.name}: is cut short")


def _before_damage(file: BinaryIO, new: Callable[[], Any], begin: int, at: int) -> bytes:
    """The content of the damaged block at `at`, up to the damage; its frame begins at `begin`."""
    frame, data = new(), []
    file.seek(begin)
    while file.tell() < at:
        frame.decompress(file.read(min(PACKED_BLOCK, at - file.tell())))
    with contextlib.suppress(Exception):
        while byte := file.read(1):
            data.append(frame.decompress(byte))
    return b"".join(data)


def import_library(name: str, purpose: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        problem = f"{package} is needed {purpose}; pip install 'gpt_pjit[corpora]'"
        raise ConfigError([problem], "input") from None
