"""The files of a corpus: finding and checking them, and dividing them into splits."""

from __future__ import annotations

import codecs
import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from gpt_pjit.config import DataConfig
from gpt_pjit.core.console import Progress, megabytes
from gpt_pjit.core.errors import ConfigError, Problem

HUB = "hf:"  # begins the name of a dataset of the Hugging Face hub, in place of a file's path
LINES = (".jsonl", ".jsonl.gz", ".json.gz", ".zst")  # .json alone is the text of one document
BLOCK = 2**16  # bytes of text read at a time; a document's pieces are about as long
SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class CorpusFile:
    """A file, and what tells whether it is still the same."""

    path: str
    size: int  # bytes
    mtime_ns: int
    sha256: str


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


def kind_of(path: str) -> str:
    """Hub | lines (of JSON) | parquet | text"""
    if path.startswith(HUB):
        return "hub"
    if path.endswith(LINES):
        return "lines"
    return "parquet" if path.endswith(".parquet") else "text"


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
        if pattern.startswith(HUB):
            files = [pattern]
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


def check_files(
    paths: list[str], known: Mapping[str, CorpusFile]
) -> tuple[list[CorpusFile], list[str]]:
    """Hashes each file, and checks that text files are UTF-8: the good files, and all problems.

    A file of the same path, size and time as in `known` is not read again.
    """
    files: dict[str, CorpusFile] = {}
    for path in paths:
        if kind_of(path) == "hub":
            files[path] = CorpusFile(path, 0, 0, hashlib.sha256(path.encode()).hexdigest())
        elif path in known and (known[path].size, known[path].mtime_ns) == _size_and_time(path):
            files[path] = known[path]
    unread = [path for path in paths if path not in files]
    problems: list[str] = []
    if unread:
        total = sum(_size_and_time(path)[0] for path in unread)
        with Progress("checking text", total, counted=megabytes) as progress:
            done = 0
            for path in unread:
                size, mtime_ns = _size_and_time(path)
                try:
                    files[path] = CorpusFile(path, size, mtime_ns, _hash(path, size))
                except ConfigError as error:
                    problems.extend(map(str, error.problems))
                except OSError as error:
                    remedy = "check its permissions"
                    problems.append(f"{path}: cannot be read: {error.strerror}; {remedy}")
                done += size
                progress.update(done)
    return [files[path] for path in paths if path in files], problems


def split_documents(files: Iterable[CorpusFile], fraction: float) -> list[Part]:
    """Each document goes to a split by its hash, so it stays there as others are added."""
    parts = []
    for file in files:
        split = split_by_hash(file.sha256, fraction) if kind_of(file.path) == "text" else ""
        parts.append(Part(file.path, 0, file.size, split, True))
    return parts


def split_by_hash(sha256: str, fraction: float) -> str:
    """The split of a document whose UTF-8 text has this SHA-256."""
    return "validation" if int(sha256[:16], 16) < fraction * 2**64 else "train"


def split_tail(files: list[CorpusFile], fraction: float) -> list[Part]:
    """The last `fraction` of all bytes, less what it takes to cut no character, is validation."""
    for file in files:
        if kind_of(file.path) != "text":
            constraint = f"cannot cut {file.path}, which is no plain text"
            problem = Problem("data.validation_split", "tail", constraint, "use documents")
            raise ConfigError([problem])
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


def text_blocks(path: str, start: int, stop: int) -> Iterator[str]:
    """The text of bytes `start` to `stop` of a file; ConfigError, with the line, if not UTF-8."""
    return _decode(path, start, stop, None)


def _hash(path: str, size: int) -> str:
    if kind_of(path) != "text":
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for _ in _decode(path, 0, size, digest):
        pass
    return digest.hexdigest()


def _decode(path: str, start: int, stop: int, digest: hashlib._Hash | None) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
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
                text = decoder.decode(block, final=start == stop)
            except UnicodeDecodeError as error:
                at = start - len(block) - pending + error.start
                line += error.object.count(b"\n", 0, error.start)
                remedy = "convert it (iconv -t UTF-8), or leave it out with data.text_exclude"
                problem = f"{path}:{line}: byte {at} is not UTF-8 ({error.reason}); {remedy}"
                raise ConfigError([problem], "data.text") from None
            line += text.count("\n")
            yield text


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
