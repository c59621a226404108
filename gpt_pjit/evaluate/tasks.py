"""Task names to data, to requests, to results; what is wrong with any is said for all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.evaluate.choices import ITEMS, Record, prepare_items, read_items
from gpt_pjit.evaluate.lengths import prepare_lengths
from gpt_pjit.evaluate.scorer import Scorer
from gpt_pjit.evaluate.sources import Data, json_lines, read_data, read_file
from gpt_pjit.evaluate.texts import Document, Job, Result, decoded, prepare_texts
from gpt_pjit.evaluate.wikitext import detokenize, pages

T = TypeVar("T")

TEST_BYTES = 5_000_000  # the last of text8 and enwik8, by convention
TEXTS = ("wikitext2", "text8", "enwik8")
FILE, LENGTHS = "file:", "lengths:"
KNOWN = f"{', '.join((*TEXTS, *ITEMS))}, {FILE}PATH, {LENGTHS}TEXT"

# What a task becomes with a scorer and the stride of sliding windows.
Task = Callable[[Scorer, int], Job]


def prepare_tasks(names: Sequence[str], data_dir: Path | None) -> dict[str, Task]:
    """Each task with its data, which is read and checked here."""
    return _each(names, lambda name: _task(name, data_dir))


def prepare_jobs(tasks: Mapping[str, Task], scorer: Scorer, stride: int) -> dict[str, Job]:
    """Each task with its requests: none is scored before all are found right."""
    return _each(tasks, lambda name: tasks[name](scorer, stride))


def _each(names: Iterable[str], make: Callable[[str], T]) -> dict[str, T]:
    """What `make` gives for each name; ConfigError with the problems of all."""
    made: dict[str, T] = {}
    problems: list[Problem | str] = []
    for name in names:
        try:
            made[name] = make(name)
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems, "--tasks")
    return made


def _task(name: str, data_dir: Path | None) -> Task:
    if name in ITEMS:
        data = read_data(name, data_dir)
        source = next(iter(data.contents), str(data.origin.get("hub")))
        items = read_items(_records(name, data), name, source)
        return lambda scorer, _: _with_origin(prepare_items(scorer, items, name), data)
    text = name.removeprefix(LENGTHS)
    if text not in TEXTS and not text.startswith(FILE):
        constraint = "takes one of the texts" if name != text else "no such task"
        raise ConfigError([Problem("tasks", name, constraint, f"known: {KNOWN}")])
    data = read_file(Path(text[len(FILE) :])) if text not in TEXTS else read_data(text, data_dir)
    documents = _documents(text, data)
    if name == text:
        return lambda scorer, stride: _with_origin(
            prepare_texts(scorer, documents, stride, name), data
        )
    return lambda scorer, _: _with_origin(prepare_lengths(scorer, documents, name), data)


def _records(task: str, data: Data) -> Sequence[Record]:
    if data.rows is not None:
        return data.rows
    (name, content), *rest = data.contents.items()
    records = json_lines(content, name)
    if task == "piqa":  # the labels have a file of their own
        labels = rest[0][1].decode().split()
        records = [r | {"label": int(x)} for r, x in zip(records, labels, strict=True)]
    return records


def _documents(text: str, data: Data) -> list[Document]:
    if text == "wikitext2":
        if data.rows is not None:
            found = [row["page"] for row in data.rows]
        else:
            found = pages(data.contents["wiki.test.raw"].decode())
        return [Document.of(page, detokenize(page)) for page in found]
    ((name, content),) = data.contents.items()
    if text in TEXTS:
        content = last(content, TEST_BYTES)
    return [Document.of(decoded(content, name))]


def last(content: bytes, size: int) -> bytes:
    """The last `size` bytes of UTF-8, without the rest of a character that is cut there."""
    start = max(0, len(content) - size)
    while start and start < len(content) and content[start] & 0xC0 == 0x80:
        start += 1
    return content[start:]


def _with_origin(job: Job, data: Data) -> Job:
    def compute() -> Result:
        result = job()
        return Result(result.metrics, {"data": data.origin, **result.details})

    return compute
