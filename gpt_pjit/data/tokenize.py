"""Tokenising a corpus into a set: read in order, encoded by workers, written in order.

The set does not depend on the number of workers. The state is saved now and then, so that a killed
run resumes from there, and ends with the same bytes.
"""

import json
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gpt_pjit.core.console import Progress, megabytes
from gpt_pjit.core.cores import usable_cores
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens import (
    SPLITS,
    BytesTokenizer,
    HuggingFaceTokenizer,
    Tokenizer,
    load_tokenizer,
)
from gpt_pjit.data.corpus import Bad, BadInput, Corpus
from gpt_pjit.data.readers import Item, Part, Piece, pieces_of, read_items
from gpt_pjit.data.share import WHOLE, Share
from gpt_pjit.data.writer import DatasetWriter

TASK = 2**20  # bytes of text for a worker at a time
FEW_CORES = 4  # that the tokenizer's own threads keep busy in one process
OVERSIZED = 2**20  # bytes of a document that the summary counts as too long to be one
FIRST_SAVE = 0.25  # seconds after the start
SAVING_SHARE = 0.02  # of the time
PART = "part.json"  # in a part of a set: figures of its summary, and its first and last change

Counts = Counter[str]  # documents, empty, oversized, changed, skipped
_tokenizer: Tokenizer = BytesTokenizer()  # that this process encodes with


@dataclass(frozen=True)
class TokenizeOptions:
    """How to tokenise; `workers` 0 is all cores. Only `skip_errors` changes the result.

    `share` is the part of the corpus.
    """

    workers: int = 0
    skip_errors: bool = False
    engine: str = "tokenizers"  # or fastokens
    share: Share = WHOLE


@dataclass
class Encoded:
    """The tokens of a task, by split: ids, where documents end in them, bytes of text.

    `counts` are figures of the summary, `changed` the documents that the normaliser changed.
    """

    splits: dict[str, tuple[np.ndarray, np.ndarray, int]] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counter)
    changed: list[str] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)


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
    corpus: Corpus,
    options: TokenizeOptions,
    note: tuple[str, bytes],
) -> Counts:
    """Writes the set at `path`, or resumes it; `note` is the name and content of a file in it.

    Raises ConfigError for bad input and for no input. A part of a set has `PART` in it too.
    """
    tokenizer = _with_engine(tokenizer, options.engine)
    total = sum(part.size for part in parts)
    cores = usable_cores()
    # One process where the tokenizer's own threads are enough, or the text is too short for more.
    best = 1 if cores <= FEW_CORES else min(cores, total // TASK + 1 if total else cores)
    count = options.workers or best
    with (
        DatasetWriter(path, tokenizer) as writer,
        Progress("tokenising", total, counted=megabytes) as progress,
        _workers(count, writer.draft, tokenizer, options.engine) as pool,
    ):
        saved = writer.saved or {"position": (0, 0), "counts": {}, "changed": ("", "")}
        counts, (first_changed, last_changed) = Counter(saved["counts"]), saved["changed"]
        bad = BadInput(options.skip_errors, counts["skipped"])
        writer.add_file(*note)
        if tokenizer.file:  # for the workers
            writer.add_file(tokenizer.file, tokenizer.content)
        started, bytes_, tokens = time.monotonic(), 0, 0
        due = started + FIRST_SAVE
        tasks = _tasks(parts, corpus.column, tokenizer.can_cut, saved["position"])
        for task, encoded in _encoded(pool, tasks, corpus, 2 * count + 1):
            bad.report(encoded.bad)
            for name, values in encoded.splits.items():
                writer.splits[name].append(*values)
            counts.update(encoded.counts)
            counts["skipped"] = bad.count
            for place in encoded.changed:  # a long text is in several pieces, one after another
                counts["changed"] += place != last_changed
                first_changed, last_changed = first_changed or place, place
            bytes_ += sum(size for _, _, size in encoded.splits.values())
            tokens += sum(len(ids) for ids, *_ in encoded.splits.values())
            now = time.monotonic()
            rate = bytes_ / 1e6 / (now - started)
            progress.update(task.read, f"{rate:,.1f} MB/s, {tokens:,} tokens")
            if now >= due:
                changed = (first_changed, last_changed)
                writer.save({"position": task.position, "counts": counts, "changed": changed})
                after = time.monotonic()
                due = after + (after - now) / SAVING_SHARE
        if options.share.is_whole:
            check_text(writer, counts)
        else:
            tally = {"counts": counts, "changed": [first_changed, last_changed]}
            writer.add_file(PART, json.dumps(tally).encode())
    return counts


def check_text(writer: DatasetWriter, counts: Counts) -> None:
    """Raises ConfigError if there is no text to train on."""
    if not writer.splits["train"].source_bytes:
        problem = f"no text to train on: {counts['documents']:,} documents, "
        problem += f"{counts['empty']:,} of them empty, {counts['skipped']:,} skipped"
        raise ConfigError([problem], "input")


def _tasks(parts: list[Part], column: str, can_cut: bool, start: tuple[int, int]) -> Iterator[Task]:
    items: list[Item] = []
    size = 0
    before = sum(part.size for part in parts[: start[0]])
    for number, part in enumerate(parts[start[0] :], start[0]):
        skipped = start[1] if number == start[0] else 0
        for index, item in enumerate(read_items(part, column, can_cut), 1):
            if index <= skipped:
                continue
            items.append(item)
            size += _size(item)
            if size >= TASK:
                read = min(max(item.read - part.taken.start, 0), part.size)
                yield Task(items, (number, index), before + read)
                items, size = [], 0
        before += part.size
    if items:
        yield Task(items, (len(parts), 0), before)


def _size(item: Item) -> int:
    if isinstance(item, Piece):
        return len(item.text) + 100  # thousands of tiny files are work too
    if isinstance(item, Bad):
        return 0
    texts = (row.values() if isinstance(row, dict) else [row] for row in item.rows)
    return sum(len(v if isinstance(v, bytearray) else str(v)) for values in texts for v in values)


def _encoded(
    pool: Executor, tasks: Iterable[Task], corpus: Corpus, depth: int
) -> Iterator[tuple[Task, Encoded]]:
    """Each task with its tokens, in order; at most `depth` are under way."""
    pending: deque[tuple[Task, Future[Encoded]]] = deque()
    try:
        for task in tasks:
            arguments = (task.items, corpus.column, corpus.validation_fraction)
            pending.append((task, pool.submit(_encode, *arguments)))
            if len(pending) > depth:
                task, future = pending.popleft()
                yield task, future.result()
        for task, future in pending:
            yield task, future.result()
    except BrokenProcessPool:
        problem = "a worker process was killed, often for lack of memory; use fewer --workers"
        raise ConfigError([problem], "tokenize") from None


@contextmanager
def _workers(count: int, folder: Path, tokenizer: Tokenizer, engine: str) -> Iterator[Executor]:
    """`count` processes, which read the tokenizer's file in `folder`, or threads of this one."""
    if count > 1:
        spawn = multiprocessing.get_context("spawn")  # a fork would inherit threads and locks
        path = str(folder / tokenizer.file) if tokenizer.file else None
        pool: Executor = ProcessPoolExecutor(count, spawn, _start_worker, (path, engine))
    else:
        pool = ThreadPoolExecutor(2, initializer=_use_tokenizer, initargs=(tokenizer,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


class _FastTokenizer(HuggingFaceTokenizer):
    """Encodes by fastokens, which takes the same file, and special tokens in a text as text."""

    def __init__(self, name: str, content: bytes):
        super().__init__(name, content)
        import fastokens

        self._fast = fastokens.Tokenizer.from_json_str(content.decode())
        self._fast.no_truncation()

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        ids, bounds = self._fast.encode_batch_flat(texts, split_special_tokens=True)
        stops = np.frombuffer(bounds, np.uint64)[1:-1].astype(np.int64)
        return np.split(np.frombuffer(ids, np.uint32), stops)[: len(texts)]


def _with_engine(tokenizer: Tokenizer, engine: str) -> Tokenizer:
    if engine == "tokenizers":
        return tokenizer
    try:
        return _FastTokenizer(tokenizer.name, tokenizer.content)
    except (ConfigError, ImportError, ValueError) as error:
        problem = f"fastokens cannot encode with tokenizer {tokenizer.name}: {error}"
        raise ConfigError([problem], "--engine") from None


def _use_tokenizer(tokenizer: Tokenizer) -> None:
    global _tokenizer
    _tokenizer = tokenizer


def _start_worker(path: str | None, engine: str) -> None:
    """Ctrl-C is for the main process; when that is killed, this one ends too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    _use_tokenizer(_with_engine(load_tokenizer(path or "bytes"), engine))


def _encode(items: list[Item], column: str, validation_fraction: float) -> Encoded:
    tokenizer, result = _tokenizer, Encoded()
    pieces = [
        piece
        for item in items
        for piece in pieces_of(item, column, validation_fraction, tokenizer.can_cut, result.bad)
    ]
    for piece in pieces:
        if tokenizer.changes(piece.text):
            result.changed.append(piece.place)
        if piece.ends:
            result.counts["documents"] += 1
            result.counts["empty"] += piece.document_bytes == 0
            result.counts["oversized"] += piece.document_bytes > OVERSIZED
    encoded = list(zip(pieces, tokenizer.encode_batch([p.text for p in pieces]), strict=True))
    end_of_text = np.array([tokenizer.eot_id], np.uint32)
    for split in SPLITS:
        parts, ends, length, size = [end_of_text[:0]], [], 0, 0
        for piece, ids in encoded:
            if piece.split != split:
                continue
            parts += [ids, end_of_text] if piece.ends else [ids]
            length += len(ids) + piece.ends
            size += len(piece.text.encode())
            ends += [length] if piece.ends else []
        result.splits[split] = np.concatenate(parts), np.array(ends, np.int64), size
    return result
