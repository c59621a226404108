"""Text files as documents: finding, checking and splitting them, and reading them in pieces."""

from __future__ import annotations

import codecs
import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from gpt_pjit.config import DataConfig
from gpt_pjit.data.progress import progress
from gpt_pjit.errors import ConfigError, Problem

BLOCK = 2**16  # bytes read at a time; a document's pieces are about as long
SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class TextFile:
    """A document, and what tells whether it is still the same."""

    path: str
    size: int  # bytes
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class Part:
    """Bytes `start` to `stop` of a file, for one split; `ends` if the document ends there."""

    path: str
    start: int
    stop: int
    split: str  # train | validation
    ends: bool


def find_files(config: DataConfig) -> list[str]:
    """The files that `text` matches and `text_exclude` does not, sorted by path."""
    try:
        exclude = re.compile(config.text_exclude) if config.text_exclude else None
    except re.error as error:
        constraint, remedy = f"not a regular expression: {error}", "for example .*/drafts/.*"
        problem = Problem("data.text_exclude", config.text_exclude, constraint, remedy)
        raise ConfigError([problem]) from None
    paths: set[str] = set()
    for pattern in config.text.split():
        found = glob.glob(os.path.expanduser(pattern), recursive=True)
        files = [path for path in found if os.path.isfile(path)]
        if not files:
            remedy = "check the path; FOLDER/**/*.txt searches a folder and those below it"
            raise ConfigError([Problem("data.text", pattern, "matches no file", remedy)])
        paths.update(files)
    kept = sorted(path for path in paths if not (exclude and exclude.fullmatch(path)))
    if not kept:
        constraint = f"leaves out all {len(paths)} files of data.text"
        problem = Problem("data.text_exclude", config.text_exclude, constraint, "narrow it")
        raise ConfigError([problem])
    return kept


def check_files(paths: list[str], known: Mapping[str, TextFile]) -> list[TextFile]:
    """Hashes each file and checks that it is UTF-8; all bad files are one ConfigError.

    A file of the same path, size and time as in `known` is not read again.
    """
    same = {
        path: known[path]
        for path in paths
        if path in known and (known[path].size, known[path].mtime_ns) == _size_and_time(path)
    }
    unread = [path for path in paths if path not in same]
    files = {**same, **_read_files(unread)} if unread else same
    return [files[path] for path in paths]


def split_documents(files: Iterable[TextFile], fraction: float) -> list[Part]:
    """A file goes to validation by its content's hash, so it stays there as files are added."""
    parts = []
    for file in files:
        chosen = int(file.sha256[:16], 16) < fraction * 2**64
        parts.append(Part(file.path, 0, file.size, "validation" if chosen else "train", True))
    return parts


def split_tail(files: list[TextFile], fraction: float) -> list[Part]:
    """The last `fraction` of all bytes, less what it takes to cut no character, is validation."""
    cut = int(sum(file.size for file in files) * (1 - fraction))
    parts = []
    for file in files:
        at = min(max(cut, 0), file.size)
        if 0 < at < file.size:
            at = _character_start(file.path, at)
        if at == file.size and cut > 0:
            parts.append(Part(file.path, 0, file.size, "train", True))
        elif at == 0:
            parts.append(Part(file.path, 0, file.size, "validation", True))
        else:
            parts.append(Part(file.path, 0, at, "train", False))
            parts.append(Part(file.path, at, file.size, "validation", True))
        cut -= file.size
    return parts


def pieces(part: Part) -> Iterator[str]:
    """The text of a part in pieces of bounded length, whose tokens are those of the whole text.

    That holds for byte-level BPE: a piece ends after a line feed, or else before a space, between
    two words, where it splits text in any case. Only 64 KiB with neither are cut in a word.
    """
    rest = ""
    for text in _read_text(part.path, part.start, part.stop):
        rest += text
        cut = _between_words(rest, "\n") or _between_words(rest, " ") or len(rest)
        yield rest[:cut]
        rest = rest[cut:]
    if rest:
        yield rest


def _read_files(paths: list[str]) -> dict[str, TextFile]:
    files: dict[str, TextFile] = {}
    problems: list[Problem | str] = []
    with progress("checking text", sum(_size_and_time(path)[0] for path in paths)) as advance:
        for path in paths:
            size, mtime_ns = _size_and_time(path)
            digest = hashlib.sha256()
            try:
                for _ in _read_text(path, 0, size, digest):
                    pass
            except ConfigError as error:
                problems.extend(error.problems)
            except OSError as error:
                problems.append(f"{path}: cannot be read: {error.strerror}; check its permissions")
            files[path] = TextFile(path, size, mtime_ns, digest.hexdigest())
            advance(size, 0)
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        rest = [f"and {more} more files"] if more > 0 else []
        raise ConfigError([*problems[:SHOWN_PROBLEMS], *rest], "data.text")
    return files


def _read_text(
    path: str, start: int, stop: int, digest: hashlib._Hash | None = None
) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open(path, "rb") as file:
        file.seek(start)
        while start < stop:
            block = file.read(min(BLOCK, stop - start))
            if not block:
                raise ConfigError([f"{path}: shrank to {start} bytes while it was read; run again"])
            if digest:
                digest.update(block)
            pending = len(decoder.getstate()[0])
            start += len(block)
            try:
                yield decoder.decode(block, final=start == stop)
            except UnicodeDecodeError as error:
                at = start - len(block) - pending + error.start
                remedy = "convert it (iconv -t UTF-8), or leave it out with data.text_exclude"
                problem = f"{path}: byte {at} is not UTF-8 ({error.reason}); {remedy}"
                raise ConfigError([problem], "data.text") from None


def _between_words(text: str, separator: str) -> int:
    """Where to cut at the last `separator` with no white space beside it; 0 if there is none."""
    at = text.rfind(separator, 1, -1)
    while at > 0 and (text[at - 1].isspace() or text[at + 1].isspace()):
        at = text.rfind(separator, 1, at)
    return at + (separator == "\n") if at > 0 else 0


def _character_start(path: str, at: int) -> int:
    """The last byte at or before `at` that begins a character."""
    with open(path, "rb") as file:
        while at > 0:
            file.seek(at)
            if file.read(1)[0] & 0xC0 != 0x80:  # not the middle of a character
                break
            at -= 1
    return at


def _size_and_time(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns
