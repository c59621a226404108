"""Task names to jobs. Every input is read and checked before anything is scored."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.evaluate.harness import Harness, Options, require_lm_eval
from gpt_pjit.evaluate.results import Job, Result
from gpt_pjit.evaluate.scorer import Scorer
from gpt_pjit.evaluate.texts import Document, prepare_lengths, prepare_texts

T = TypeVar("T")

FILE, LENGTHS = "file:", "lengths:"
# The published files, and the hash by which each is known.
TEXTS = {
    "wikitext2": (
        "wiki.test.raw",
        "sha256:173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
    ),
    "text8": ("text8", "md5:3bea1919949baf155f99411df5fada7e"),
    "enwik8": (
        "enwik8",
        "sha256:2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",
    ),
}
TEST_BYTES = 5_000_000  # the last of text8 and enwik8, by convention
KNOWN = f"{', '.join(TEXTS)}, {FILE}PATH, {LENGTHS}TEXT, and any task or group of lm-eval"

# What a task becomes with a scorer and the stride of sliding windows.
Task = Callable[[Scorer, int], Job]


def prepare_tasks(names: Sequence[str], options: Options) -> dict[str, Task]:
    """Each task with its data."""
    if options.data_dir and not options.data_dir.is_dir():
        raise ConfigError([f"--data_dir={options.data_dir} is not a folder"])
    theirs = [name for name in names if name not in TEXTS and not name.startswith((FILE, LENGTHS))]
    if not theirs:
        return _each(names, lambda name: _text_task(name, options))
    require_lm_eval(theirs)
    with tempfile.TemporaryDirectory() as folder:
        harness = Harness(options, Path(folder))
        return _each(names, lambda n: harness.load(n) if n in theirs else _text_task(n, options))


def prepare_jobs(tasks: Mapping[str, Task], scorer: Scorer, stride: int) -> dict[str, Job]:
    """Each task with its requests."""
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


def _text_task(name: str, options: Options) -> Task:
    text = name.removeprefix(LENGTHS)
    if text not in TEXTS and not text.startswith(FILE):
        raise ConfigError([f"{name}: {LENGTHS} takes {', '.join(TEXTS)} or {FILE}PATH"])
    path = Path(text[len(FILE) :]) if text not in TEXTS else _find(text, options.data_dir)
    content = _read(path)
    if text in TEXTS:
        _check_published(text, path, content)
    documents = _documents(text, content, str(path))
    digest = hashlib.sha256(content).hexdigest()
    data = {"file": str(path), "sha256": digest, "checked": text in TEXTS}

    def prepare(scorer: Scorer, stride: int) -> Job:
        if name == text:
            job = prepare_texts(scorer, documents, stride, name)
        else:
            job = prepare_lengths(scorer, documents, name)
        return lambda: {
            task: Result(result.metrics, {"data": data, **result.details})
            for task, result in job().items()
        }

    return prepare


def _find(text: str, data_dir: Path | None) -> Path:
    """The file of one of `TEXTS`, in DATA_DIR/TEXT or DATA_DIR."""
    file = TEXTS[text][0]
    if data_dir is None:
        raise ConfigError([f"{text} needs its published file {file}; give its --data_dir"])
    places = (data_dir / text / file, data_dir / file)
    if found := next((place for place in places if place.is_file()), None):
        return found
    raise ConfigError([f"{text}: there is no {' or '.join(map(str, places))}"])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError([f"{path} cannot be read: {error.strerror}"]) from None


def _check_published(text: str, path: Path, content: bytes) -> None:
    kind, _, digest = TEXTS[text][1].partition(":")
    if (found := hashlib.new(kind, content, usedforsecurity=False).hexdigest()) != digest:
        problem = f"{text}: {path} has {kind} {found}, the published file {digest}"
        raise ConfigError([f"{problem}; {FILE}{path} scores it as it is"])


def _documents(text: str, content: bytes, name: str) -> list[Document]:
    if text == "wikitext2":
        require_lm_eval([text])
        from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

        found = pages(decoded(content, name))
        return [Document.of(page, wikitext_detokenizer({"page": page})) for page in found]
    return [Document.of(decoded(last(content, TEST_BYTES) if text in TEXTS else content, name))]


def decoded(content: bytes, name: str) -> str:
    """The text of `content`; ConfigError, with the place, where it is not UTF-8."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        place = f"byte {error.start} of what is scored"
        raise ConfigError([f"{name} is not UTF-8 text at {place}: {error.reason}"]) from None


def last(content: bytes, size: int) -> bytes:
    """The last `size` bytes of UTF-8, without the rest of a character that is cut there."""
    start = max(0, len(content) - size)
    while start and start < len(content) and content[start] & 0xC0 == 0x80:
        start += 1
    return content[start:]


def pages(text: str) -> list[str]:
    """The documents of lm-eval's `wikitext`: each begins with a line ` = Title = `.

    A blank part before the first title is left out, and so is the line end between two pages.
    """
    found: list[str] = []
    lines: list[str] = []
    for line in text.split("\n"):
        title = line.replace("= = =", "===").replace("= =", "==").strip()
        if title.startswith("= ") and title.endswith(" ="):
            if "".join(lines).strip():
                found.append("\n".join(lines))
            lines = []
        lines.append(line)
    return [*found, "\n".join(lines)]
