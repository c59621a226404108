"""The files of a corpus: finding and checking them, and dividing them into splits."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gpt_pjit.config import DataConfig
from gpt_pjit.core.console import Progress, megabytes
from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.data.files import HUB, InputError, is_packed, kind_of, text_blocks
from gpt_pjit.data.readers import Bad, Part, split_by_hash

SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class Corpus:
    """Texts, and which of them are for validation.

    Inputs are paths, globs or `hf:NAME`; files whose whole path matches the regex `exclude` are
    left out.
    """

    inputs: tuple[str, ...]
    exclude: str = ""
    column: str = "text"
    validation_split: str = "documents"  # documents, by their hash | tail, of all the text
    validation_fraction: float = 0.05

    @classmethod
    def of_config(cls, config: DataConfig) -> Corpus:
        """The corpus of `data.text`: one path or glob, or else several with spaces between."""
        return cls(
            (config.text,) if _files_of(config.text) else tuple(config.text.split()),
            config.text_exclude,
            config.text_column,
            config.validation_split,
            config.validation_fraction,
        )


@dataclass(frozen=True)
class CorpusFile:
    """A file and the marks by which a change is seen; of a text file, the hash of its text."""

    path: str
    size: int  # bytes
    mtime_ns: int
    sha256: str


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


def find_files(corpus: Corpus) -> list[str]:
    """The files of a corpus, sorted by path; a file reached by several paths is there once."""
    try:
        exclude = re.compile(corpus.exclude) if corpus.exclude else None
    except re.error as error:
        raise ConfigError([f"{corpus.exclude!r} is not a regex: {error}"], "exclude") from None
    found: set[str] = set()
    for entry in corpus.inputs:
        paths = _files_of(entry)
        if not paths:
            problem = f"{entry!r} is not a file"
            if os.path.isdir(os.path.expanduser(entry)):
                problem = f"{entry!r} is a folder; FOLDER/**/*.txt means the files in it"
            raise ConfigError([problem], "input")
        found.update(paths)
    kept = [path for path in found if not (exclude and exclude.fullmatch(path))]
    if not kept:
        raise ConfigError([f"{corpus.exclude!r} leaves out all {len(found)} files"], "exclude")
    once: dict[object, str] = {}
    for path in sorted(kept, key=lambda path: (len(path), path)):
        once.setdefault(path if path.startswith(HUB) else _identity(path), path)
    return sorted(once.values())


def _files_of(entry: str) -> list[str]:
    """The file that `entry` names, or else the files that match it as a glob."""
    path = os.path.expanduser(entry)
    if entry.startswith(HUB) or os.path.isfile(path):
        return [path]
    return [path for path in glob.glob(path, recursive=True) if os.path.isfile(path)]


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def check_files(
    paths: list[str], known: Mapping[str, CorpusFile]
) -> tuple[list[CorpusFile], list[Bad]]:
    """Hashes each file, and checks that text files are UTF-8: the good files, and all problems.

    A file of the same path, size and time as in `known` is not read again.
    """
    files: dict[str, CorpusFile] = {}
    for path in paths:
        if path.startswith(HUB):
            files[path] = CorpusFile(path, 0, 0, hashlib.sha256(path.encode()).hexdigest())
        elif path in known and (known[path].size, known[path].mtime_ns) == _size_and_time(path):
            files[path] = known[path]
    unread = {path: _size_and_time(path) for path in paths if path not in files}
    problems: list[Bad] = []
    if unread:
        total = sum(size for size, _ in unread.values())
        with Progress("checking text", total, counted=megabytes) as progress:
            done = 0
            for path, (size, mtime_ns) in unread.items():
                try:
                    files[path] = CorpusFile(path, size, mtime_ns, _hash(path, size))
                except InputError as error:
                    problems.append(Bad(str(error)))
                except OSError as error:
                    problems.append(Bad(f"{path}: cannot be read: {error.strerror}"))
                done += size
                progress.update(done)
    return [files[path] for path in paths if path in files], problems


def _hash(path: str, size: int) -> str:
    if kind_of(path) != "text":
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for text in text_blocks(path, 0, size):
        digest.update(text.encode())
    return digest.hexdigest()


def _size_and_time(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def divide(files: Iterable[CorpusFile], corpus: Corpus) -> list[Part]:
    """The parts of all files: each document to a split by its hash, or the tail to validation."""
    split = {"documents": _split_documents, "tail": _split_tail}[corpus.validation_split]
    return split(list(files), corpus.validation_fraction)


def _split_documents(files: list[CorpusFile], fraction: float) -> list[Part]:
    """A document's split depends on its hash alone, so it stays when others are added."""
    parts = []
    for file in files:
        split = split_by_hash(file.sha256, fraction) if kind_of(file.path) == "text" else ""
        parts.append(Part(file.path, 0, file.size, split, True))
    return parts


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
        if at == file.size and cut > 0:
            parts.append(Part(file.path, 0, file.size, "train", True))
        elif at == 0:
            parts.append(Part(file.path, 0, file.size, "validation", True))
        else:
            parts.append(Part(file.path, 0, at, "train", False))
            parts.append(Part(file.path, at, file.size, "validation", True))
        cut -= file.size
    return parts


def _character_start(path: str, at: int) -> int:
    """The last byte at or before `at` that begins a character."""
    with open(path, "rb") as file:
        while at > 0:
            file.seek(at)
            if file.read(1)[0] & 0xC0 != 0x80:  # not the middle of a character
                break
            at -= 1
    return at
