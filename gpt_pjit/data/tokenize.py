"""Tokenising a corpus into a set: read in order, encoded by workers, written in order.

The set does not depend on the number of workers. The state is saved now and then, so that a killed
run goes on from there, and ends with the same bytes.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt_pjit.config import DataConfig
from gpt_pjit.core.console import Progress, megabytes
from gpt_pjit.core.cores import usable_cores
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens import Tokenizer
from gpt_pjit.data.ahead import ahead
from gpt_pjit.data.corpus import SHOWN_PROBLEMS, Part
from gpt_pjit.data.encode import Encoded, Settings
from gpt_pjit.data.engines import EngineDiffersError, has_fast_engine
from gpt_pjit.data.readers import Item, Lines, Piece, Rows, read_items
from gpt_pjit.data.workers import Workers
from gpt_pjit.data.writer import DatasetWriter, partial_folder

TASK = 2**21  # bytes of text for a worker at a time
WORTH_A_WORKER = {False: 2**20, True: 2**25}  # bytes that take as long as its start; True: fast
FEW_CORES = 4  # that the engines' own threads keep busy in one process
FIRST_SAVE = 0.25  # seconds after the start
SAVING_SHARE = 0.02  # of the time


@dataclass(frozen=True)
class Effort:
    """How to tokenise, which changes nothing about the result: all cores, if `workers` is 0."""

    workers: int = 0
    skip_errors: bool = False
    fast: bool = True


ALL_CORES = Effort()


@dataclass
class Counts:
    """What the summary tells that the set does not."""

    documents: int = 0
    empty: int = 0
    oversized: int = 0
    changed: int = 0
    skipped: int = 0
    last_changed: str = ""

    def add(self, encoded: Encoded) -> None:
        self.documents += encoded.documents
        self.empty += encoded.empty
        self.oversized += encoded.oversized
        self.skipped += len(encoded.problems)
        for place in encoded.changed:  # a long text is in several pieces, one after another
            self.changed += place != self.last_changed
            self.last_changed = place


@dataclass(frozen=True)
class Task:
    """Items, and how far reading has come with them: parts read, items read of the next part, and
    bytes of all parts.
    """

    items: list[Item]
    position: tuple[int, int]
    read: int


def tokenize(
    path: Path,
    parts: list[Part],
    tokenizer: Tokenizer,
    config: DataConfig,
    effort: Effort,
    source: tuple[str, bytes],
) -> Counts:
    """Writes the set at `path`, or goes on with it; `source` is the name and content of a file in
    it. Raises FileExistsError if something is there, ConfigError for bad input.
    """
    settings = Settings(
        tokenizer=tokenizer.name,
        content=tokenizer.content if tokenizer.file else None,
        column=config.text_column,
        validation_fraction=config.validation_fraction,
        fast=effort.fast and has_fast_engine(tokenizer),
    )
    try:
        return _tokenize(path, parts, tokenizer, settings, effort, source)
    except EngineDiffersError as error:
        print(f"fastokens differs from tokenizers {error}; again without it", file=sys.stderr)
        shutil.rmtree(partial_folder(path), ignore_errors=True)
        slow = dataclasses.replace(settings, fast=False)
        return _tokenize(path, parts, tokenizer, slow, effort, source)


def _tokenize(
    path: Path,
    parts: list[Part],
    tokenizer: Tokenizer,
    settings: Settings,
    effort: Effort,
    source: tuple[str, bytes],
) -> Counts:
    total = sum(part.stop - part.start for part in parts)
    count = effort.workers or _workers(total, settings.fast)
    with (
        DatasetWriter(path, tokenizer) as writer,
        Progress("tokenising", total, counted=megabytes) as progress,
        Workers(settings, count) as workers,
    ):
        saved = writer.saved or {"position": (0, 0), "read": 0, "counts": {}}
        counts, read = Counts(**saved["counts"]), saved["read"]
        writer.add_file(*source)
        begun, bytes_, tokens = time.monotonic(), 0, 0
        tasks = _tasks(parts, settings.column, tokenizer.can_cut, saved["position"])

        def encode(task: Task) -> tuple[Task, Encoded]:
            return task, workers.encode(task.items)

        saver = _Saver(writer)
        for task, encoded in ahead(encode, tasks, threads=max(count, 2), depth=2 * count + 1):
            _report_problems(encoded.problems, counts, effort)
            for name, values in encoded.splits.items():
                writer.splits[name].append(*values)
            counts.add(encoded)
            bytes_ += sum(size for _, _, size in encoded.splits.values())
            tokens += sum(len(ids) for ids, *_ in encoded.splits.values())
            read = task.read
            rate = bytes_ / 1e6 / (time.monotonic() - begun)
            progress.update(read, f"{rate:,.1f} MB/s, {tokens:,} tokens")
            saver.step({"position": task.position, "read": read, "counts": asdict(counts)})
    return counts


def _tasks(parts: list[Part], column: str, can_cut: bool, start: list[int]) -> Iterator[Task]:
    items: list[Item] = []
    size = 0
    before = sum(part.stop - part.start for part in parts[: start[0]])
    for number, part in enumerate(parts[start[0] :], start[0]):
        skipped = start[1] if number == start[0] else 0
        for index, item in enumerate(read_items(part, column, can_cut), 1):
            if index <= skipped:
                continue
            items.append(item)
            size += _size(item)
            if size >= TASK:
                yield Task(items, (number, index), before + item.read)
                items, size = [], 0
        before += part.stop - part.start
    if items:
        yield Task(items, (len(parts), 0), before)


def _size(item: Item) -> int:
    if isinstance(item, Piece):
        return len(item.text) + 100  # thousands of tiny files are work too
    if isinstance(item, Lines):
        return len(item.data)
    return sum(len(str(text)) for text in item.texts) if isinstance(item, Rows) else 0


def _workers(total: int, fast: bool) -> int:
    """1, in this process, where its interpreter lock is no limit or the text too short."""
    cores = usable_cores()
    worth = total // WORTH_A_WORKER[fast] + 1 if total else cores
    return 1 if cores <= FEW_CORES else min(cores, worth)


class _Saver:
    """Saves when the last saving is long enough ago for all of them to take a small share."""

    def __init__(self, writer: DatasetWriter):
        self._writer = writer
        self._due = time.monotonic() + FIRST_SAVE

    def step(self, progress: Any) -> None:
        begun = time.monotonic()
        if begun >= self._due:
            self._writer.save(progress)
            now = time.monotonic()
            self._due = now + (now - begun) / SAVING_SHARE


def _report_problems(problems: list[str], counts: Counts, effort: Effort) -> None:
    if problems and not effort.skip_errors:
        shown = problems[:SHOWN_PROBLEMS]
        shown[-1] += "; mend the input, or leave such documents out with --on_error=skip"
        raise ConfigError(shown, "data.text")
    for problem in problems[: max(SHOWN_PROBLEMS - counts.skipped, 0)]:
        print(f"skipped: {problem}", file=sys.stderr)
