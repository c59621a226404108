"""Task names to data to results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from gpt_pjit.errors import ConfigError, Problem
from gpt_pjit.evaluate.choices import ITEMS, Record, evaluate_items
from gpt_pjit.evaluate.lengths import check_lengths, evaluate_lengths
from gpt_pjit.evaluate.scorer import Scorer
from gpt_pjit.evaluate.sources import Data, json_lines, read_data, read_file
from gpt_pjit.evaluate.texts import Document, Result, decoded, evaluate_texts
from gpt_pjit.evaluate.wikitext import detokenize, pages
from gpt_pjit.trained import Trained

TEST_BYTES = 5_000_000  # the last of text8 and enwik8, by convention
TEXTS = ("wikitext2", "text8", "enwik8")
FILE, LENGTHS = "file:", "lengths:"
KNOWN = f"{', '.join((*TEXTS, *ITEMS))}, {FILE}PATH, {LENGTHS}TEXT"

# What computes a result, given the stride of sliding windows too.
Task = Callable[[Scorer, int], Result]


def prepare_tasks(names: Sequence[str], data_dir: Path | None) -> dict[str, Task]:
    """For each name what computes its result; the data is read and checked here.

    Raises ConfigError with the problems of all tasks at once.
    """
    tasks: dict[str, Task] = {}
    problems: list[Problem | str] = []
    for name in names:
        try:
            tasks[name] = _task(name, data_dir)
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems, "--tasks")
    return tasks


def check_tasks(names: Sequence[str], trained: Trained) -> None:
    """Raises ConfigError where a task is not for this model, before any is computed."""
    for name in names:
        if name.startswith(LENGTHS):
            check_lengths(trained, name)


def _task(name: str, data_dir: Path | None) -> Task:
    if name in ITEMS:
        data = read_data(name, data_dir)
        records = data.rows if data.rows is not None else _records(name, data)
        return lambda scorer, _: _with_origin(evaluate_items(scorer, records, name), data)
    text = name.removeprefix(LENGTHS)
    if text not in TEXTS and not text.startswith(FILE):
        raise ConfigError([Problem("tasks", name, "no such task", f"known: {KNOWN}")])
    data = read_file(Path(text[len(FILE) :])) if text not in TEXTS else read_data(text, data_dir)
    documents = _documents(text, data)

    def compute(scorer: Scorer, stride: int) -> Result:
        if name == text:
            return _with_origin(evaluate_texts(scorer, documents, stride, name), data)
        return _with_origin(evaluate_lengths(scorer, documents, name), data)

    return compute


def _records(task: str, data: Data) -> list[Record]:
    contents = list(data.contents.values())
    records = json_lines(contents[0])
    if task == "piqa":  # the labels have a file of their own
        labels = contents[1].decode().split()
        records = [r | {"label": int(x)} for r, x in zip(records, labels, strict=True)]
    return list(records)


def _documents(text: str, data: Data) -> list[Document]:
    if text == "wikitext2":
        if data.rows is not None:
            found = [row["page"] for row in data.rows]
        else:
            found = pages(data.contents["wiki.test.raw"].decode())
        return [Document.of(page, detokenize(page)) for page in found]
    ((name, content),) = data.contents.items()
    if text in TEXTS:
        content = content[-TEST_BYTES:]
    return [Document.of(decoded(content, name))]


def _with_origin(result: Result, data: Data) -> Result:
    return Result(result.metrics, {"data": data.origin, **result.details})
