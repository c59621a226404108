"""The files of a corpus: found, checked, unpacked, and decoded."""

import codecs
import contextlib
import glob
import hashlib
import importlib
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, BinaryIO, Self

from gpt_pjit.config import DataConfig
from gpt_pjit.core.console import Progress, megabytes
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.data.share import WHOLE, Share

HUB = "hf:"  # begins the name of a dataset of the Hugging Face hub, in place of a file's path
BLOCK = 2**16  # bytes of a file read at a time
PACKED_BLOCK = 2**14
SHOWN_PROBLEMS = 20
SKIPPED = "skipped"  # in place of the hash of a file that cannot be read


@dataclass(frozen=True)
class Corpus:
    """Texts, and which of them are for validation."""

    inputs: tuple[str, ...]  # paths, globs or `hf:NAME`
    exclude: str = ""  # regex of whole paths to leave out
    column: str = "text"
    validation_split: str = "documents"  # documents, by their hash | tail, of all the text
    validation_fraction: float = 0.05

    @classmethod
    def of_config(cls, config: DataConfig) -> Self:
        """The corpus of `data.text`: one path or glob, or else several with spaces between."""
        return cls(
            (config.text,) if any(_files_of(config.text)) else tuple(config.text.split()),
            config.text_exclude,
            config.text_column,
            config.validation_split,
            config.validation_fraction,
        )


@dataclass(frozen=True)
class CorpusFile:
    """A file and the marks by which a change is seen; of a text file, the hash of its text.

    In a part of a set, "" stands for the hash of a file that lies in other parts.
    """

    path: str
    size: int  # bytes
    mtime_ns: int
    sha256: str = ""


@dataclass(frozen=True)
class Bad:
    """Documents that cannot be read, and why."""

    problem: str
    documents: int = 1
    read: int = 0


class BadInput:
    """Stops at bad documents, or else names the first of them and counts all."""

    def __init__(self, skip: bool = False, count: int = 0):
        self._skip, self.count = skip, count

    def report(self, problems: Sequence[Bad]) -> None:
        """Raises ConfigError unless bad documents are to be skipped."""
        if problems and not self._skip:
            more = len(problems) - SHOWN_PROBLEMS
            rest = [f"and {more} more"] if more > 0 else []
            raise ConfigError([*(p.problem for p in problems[:SHOWN_PROBLEMS]), *rest], "input")
        for problem in problems:
            if self.count < SHOWN_PROBLEMS:
                print(f"skipped: {problem.problem}", file=sys.stderr)
            self.count += problem.documents


class InputError(Exception):
    """A file cannot be read, or only up to some place."""


def check_files(
    corpus: Corpus, bad: BadInput, known: Sequence[CorpusFile] = (), share: Share = WHOLE
) -> list[CorpusFile]:
    """The files of a corpus, sorted by path, hashed, and text files checked to be UTF-8.

    A file of the same path, size and time as in `known` is not read again. For a part of a corpus
    only its own files are read, and those that are skipped are listed too, as `SKIPPED`.
    """
    found = find_files(corpus)
    if not share.is_whole and any(file.path.startswith(HUB) for file in found):
        problem = f"--part={share} needs files: download those of {HUB}NAME, and name them"
        raise ConfigError([problem], "input")
    taken = share.ranges([file.size for file in found])
    mine = [number for number, bytes_ in enumerate(taken) if bytes_]
    hashed = (file for file in known if file.sha256 not in ("", SKIPPED))
    before = {(file.path, file.size, file.mtime_ns): file for file in hashed}
    problems: list[Bad] = []
    done, total = 0, sum(found[number].size for number in mine)
    with Progress("checking text", total, counted=megabytes) as progress:
        for number in mine:
            file = found[number]
            found[number] = replace(file, sha256=SKIPPED)
            try:
                same = before.get((file.path, file.size, file.mtime_ns))
                found[number] = same or replace(file, sha256=_hash(file.path, file.size))
            except InputError as error:
                problems.append(Bad(str(error)))
            except OSError as error:
                problems.append(Bad(f"{file.path}: cannot be read: {error.strerror}"))
            done += file.size
            progress.update(done)
    bad.report(problems)
    return [file for file in found if file.sha256 != SKIPPED or not share.is_whole]


def find_files(corpus: Corpus) -> list[CorpusFile]:
    """The files, not yet hashed; a file reached by several paths is there once."""
    try:
        exclude = re.compile(corpus.exclude or r"(?!)")
    except re.error as error:
        raise ConfigError([f"{corpus.exclude!r} is not a regex: {error}"], "exclude") from None
    found: set[str] = set()
    for entry in corpus.inputs:
        paths = set(_files_of(entry))
        if not paths:
            problem = f"{entry!r} matches no file"
            if os.path.isdir(os.path.expanduser(entry)):
                problem = f"{entry!r} is a folder; FOLDER/**/*.txt means the files in it"
            raise ConfigError([problem], "input")
        found |= paths
    kept = [path for path in found if not exclude.fullmatch(path)]
    if not kept:
        raise ConfigError([f"{corpus.exclude!r} leaves out all {len(found)} files"], "exclude")
    files: dict[object, CorpusFile] = {}
    for path in sorted(kept, key=lambda path: (-len(path), path)):  # the shortest path stays
        if path.startswith(HUB):
            files[path] = CorpusFile(path, 0, 0)
        else:
            status = os.stat(path)
            mark = status.st_size, status.st_mtime_ns
            files[status.st_dev, status.st_ino] = CorpusFile(path, *mark)
    return sorted(files.values(), key=lambda file: file.path)


def _files_of(entry: str) -> Iterator[str]:
    """The file that `entry` names, or else the files that match it as a glob."""
    path = os.path.expanduser(entry)
    if entry.startswith(HUB) or os.path.isfile(path):
        return iter([path])
    return filter(os.path.isfile, glob.iglob(path, recursive=True))


def kind_of(path: str) -> str:
    """Hub | lines (of JSON) | parquet | text: by name, or by content if the name does not tell."""
    name = path.lower()
    plain = name.removesuffix(".gz").removesuffix(".zst")
    if path.startswith(HUB):
        return "hub"
    if plain.endswith((".jsonl", ".ndjson")):
        return "lines"
    if plain.endswith(".parquet"):
        return "parquet"
    may_be_lines = plain.endswith(".json") or (plain != name and not plain.endswith(".txt"))
    return "lines" if may_be_lines and _begins_with_record(path) else "text"


def _hash(path: str, size: int) -> str:
    """Of a text file, the hash of its text."""
    kind = kind_of(path)
    if kind == "hub":
        return hashlib.sha256(path.encode()).hexdigest()
    if kind != "text":
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for text in text_blocks(path, 0, size):
        digest.update(text.encode())
    return digest.hexdigest()


def text_blocks(path: str, start: int, stop: int) -> Iterator[str]:
    """The text of bytes `start` to `stop` of a file without its byte-order mark.

    Raises InputError, with the line, where it is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8" if start else "utf-8-sig")()
    done, line = start, 1
    for block in chain((block for block, _ in unpacked(path, start, stop)), [b""]):
        done += len(block)
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            at = done - len(error.object) + error.start
            line += error.object.count(b"\n", 0, error.start)
            problem = f"{path}:{line}: byte {at} is not UTF-8 ({error.reason})"
            raise InputError(problem) from None
        line += text.count("\n")
        if text:
            yield text


def _begins_with_record(path: str) -> bool:
    """Whether a file begins with a JSON object on one line, not spread over several."""
    try:
        head, _ = next(unpacked(path, 0, BLOCK), (b"", 0))
    except (InputError, OSError):
        return False
    return bool(re.match(rb"\s*\{[ \t]*\"", head.removeprefix(codecs.BOM_UTF8)))


def is_packed(path: str) -> bool:
    with open(path, "rb") as file:
        return _decompressor(file) is not None


def unpacked(path: str, start: int, stop: int) -> Iterator[tuple[bytes, int]]:
    """The content of a file, unpacked, in blocks, with how many bytes of the file were read.

    Raises InputError at damage, after all the content before it.
    """
    with open(path, "rb") as file:
        new = _decompressor(file)
        if new:
            yield from _frames(file, new)
            return
        file.seek(start)
        while start < stop:
            block = file.read(min(BLOCK, stop - start))
            if not block:
                raise InputError(f"{path}: shrank to {start} bytes while being read")
            start += len(block)
            yield block, start


def _decompressor(file: Any) -> Callable[[], Any] | None:
    """Makes decompressors for a file that begins as packed ones do; None if it does not."""
    head = file.peek(4)[:4]
    if head[:2] == b"\x1f\x8b":
        return lambda: zlib.decompressobj(31)
    # The second is a skippable frame, with which some tools begin.
    if head == b"\x28\xb5\x2f\xfd" or head[1:] == b"\x2a\x4d\x18":
        zstandard = import_library("zstandard", f"to read {file.name}")
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
