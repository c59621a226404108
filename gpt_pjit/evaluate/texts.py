"""Losses of texts: bits per byte with a sliding window, and the same tokens in longer windows."""

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.files import file_errors
from gpt_pjit.evaluate.harness import require_lm_eval
from gpt_pjit.evaluate.losses import (
    Job,
    Metrics,
    Result,
    loss_metrics,
    perplexity,
    ratio,
    ratio_stderr,
    with_stderr,
    worst_tokens,
)
from gpt_pjit.evaluate.scorer import Request, Scorer, learned_limit, rolling_requests

FILE, LENGTHS = "file:", "lengths:"
WIKITEXT2_SHA256 = "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08"
ENWIK8_SHA256 = "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8"
TEXTS = {  # the published files, and the hash by which each is known
    "wikitext2": ("wiki.test.raw", f"sha256:{WIKITEXT2_SHA256}"),
    "text8": ("text8", "md5:3bea1919949baf155f99411df5fada7e"),
    "enwik8": ("enwik8", f"sha256:{ENWIK8_SHA256}"),
}
TEST_BYTES = 5_000_000  # the last of text8 and enwik8, by convention
MULTIPLES = (1, 2, 4)  # of the training context
BUCKETS = 4  # of positions, in each training context


class Document(NamedTuple):
    """What the model reads, and the size of the original: UTF-8 bytes, and words between spaces."""

    text: str
    bytes: int
    words: int

    @classmethod
    def of(cls, original: str, text: str | None = None) -> Self:
        words = len(re.split(r"\s+", original))  # lm-eval's count
        return cls(original if text is None else text, len(original.encode()), words)


def is_text(task: str) -> bool:
    return task in TEXTS or task.startswith((FILE, LENGTHS))


def prepare_text(task: str, scorer: Scorer, stride: int, data_dir: Path | None) -> Job:
    """The job of a text, or of `lengths:` of one, whose file is read and checked here."""
    name = task.removeprefix(LENGTHS)
    path = _find(name, data_dir)
    with file_errors(f"{path} cannot be read", "--tasks"):
        content = path.read_bytes()
    if name in TEXTS:
        _check_published(name, path, content)
    digest = hashlib.sha256(content).hexdigest()
    data = {"file": str(path), "sha256": digest, "checked": name in TEXTS}
    documents = _documents(name, content, path)
    if name == task:
        score = prepare_bits(scorer, documents, stride, task)
    else:
        score = prepare_lengths(scorer, documents, task)

    def job() -> dict[str, Result]:
        result = score()
        return {task: Result(result.metrics, {"data": data} | result.details)}

    return job


def _find(name: str, data_dir: Path | None) -> Path:
    """The file of `file:PATH`, or of one of `TEXTS`, in DATA_DIR/TEXT or DATA_DIR."""
    if name.startswith(FILE):
        return Path(name.removeprefix(FILE)).expanduser()
    if name not in TEXTS:
        raise ConfigError([f"{LENGTHS}{name}: {LENGTHS} takes {', '.join(TEXTS)} or {FILE}PATH"])
    file = TEXTS[name][0]
    if data_dir is None:
        problem = f"{name} needs its published file {file}"
        raise ConfigError([f"{problem}; pass --data_dir, or set eval.tasks_data_dir in a run"])
    places = (data_dir / name / file, data_dir / file)
    if found := next((place for place in places if place.is_file()), None):
        return found
    raise ConfigError([f"{name}: there is no {' or '.join(map(str, places))}"])


def _check_published(name: str, path: Path, content: bytes) -> None:
    kind, _, digest = TEXTS[name][1].partition(":")
    if (found := hashlib.new(kind, content, usedforsecurity=False).hexdigest()) != digest:
        problem = f"{name}: {path} has {kind} {found}, the published file {digest}"
        raise ConfigError([f"{problem}; {FILE}{path} scores it as it is"])


def _documents(name: str, content: bytes, path: Path) -> list[Document]:
    """What is scored of a text; ConfigError where that is not UTF-8."""
    scored = last(content, TEST_BYTES) if name in ("text8", "enwik8") else content
    try:
        text = scored.decode()
    except UnicodeDecodeError as error:
        problem = f"{path} is not UTF-8 text at byte {error.start} of what is scored"
        raise ConfigError([f"{problem}: {error.reason}"]) from None
    if name != "wikitext2":
        return [Document.of(text)]
    require_lm_eval([name])
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    return [Document.of(page, wikitext_detokenizer({"page": page})) for page in pages(text)]


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


def prepare_bits(
    scorer: Scorer, documents: Sequence[Document], stride: int, task: str
) -> Callable[[], Result]:
    """Bits per byte, and perplexity per token, word and byte, of documents scored one by one."""
    tokenizer = scorer.trained.tokenizer
    requests: list[Request] = []
    owner: list[int] = []
    encoded = tokenizer.encode_batch([document.text for document in documents])
    for number, tokens in enumerate(encoded):
        rolling = rolling_requests(tokens.tolist(), tokenizer.eot_id, scorer.window, stride)
        requests.extend(rolling)
        owner.extend([number] * (len(requests) - len(owner)))
    if not requests:
        raise ConfigError([f"{task} holds no text"], "evaluation")
    details = {
        "documents": len(documents),
        "bytes": sum(document.bytes for document in documents),
        "words": sum(document.words for document in documents),
        "tokens": sum(map(len, encoded)),
        "window": scorer.window,
        "stride": stride,
        "text_changed_by_tokenizer": any(tokenizer.changes(d.text) for d in documents),
    }

    def score() -> Result:
        scored = scorer.score(requests, task)
        nll = np.concatenate([result.nll for result in scored])
        assert len(nll) == details["tokens"]
        owner_of_token = np.repeat(owner, [len(result.nll) for result in scored])
        greedy = np.concatenate([result.greedy for result in scored])
        metrics = _text_metrics(documents, owner_of_token, nll, greedy, scorer.window)
        worst = worst_tokens(requests, scored, tokenizer)
        return Result(metrics, details | {"worst_tokens": worst})

    return score


def _text_metrics(
    documents: Sequence[Document],
    owner: np.ndarray,
    nll: np.ndarray,
    greedy: np.ndarray,
    window: int,
) -> Metrics:
    """`owner`, `nll` and `greedy` are [N], one entry for each token.

    Standard errors treat documents as independent, or the pieces of a window's length of a single
    document, whatever the stride.
    """
    cluster, n = owner, len(documents)
    sizes: dict[str, Any] = {
        "byte": np.array([document.bytes for document in documents], np.float64),
        "word": np.array([document.words for document in documents], np.float64),
    }
    if n == 1:  # pieces of a window's length, each with its tokens' part of the bytes and words
        cluster, n = np.arange(len(nll)) // window, -(-len(nll) // window)
        sizes = {unit: total * np.bincount(cluster) / len(nll) for unit, total in sizes.items()}
    sizes["token"] = np.bincount(cluster, minlength=n).astype(np.float64)
    nats = np.bincount(cluster, nll, n)
    right = np.bincount(cluster, greedy, n)
    ratios = {unit: float(nll.sum() / size.sum()) for unit, size in sizes.items()}
    errors = {unit: ratio_stderr(nats, size) for unit, size in sizes.items()}
    bits = None if errors["byte"] is None else errors["byte"] / math.log(2)
    metrics = with_stderr("bits_per_byte", ratios["byte"] / math.log(2), bits)
    for unit in ("token", "word", "byte"):
        metrics |= perplexity(f"{unit}_perplexity", ratios[unit], errors[unit])
    metrics |= ratio("acc", right, sizes["token"])
    return metrics | loss_metrics(nll, cluster)


def prepare_lengths(
    scorer: Scorer, documents: Sequence[Document], task: str
) -> Callable[[], Result]:
    """Nats per token at 1, 2 and 4 times the training context, and by position in the window.

    Every length reads the same tokens in windows that do not overlap: those of each document, up to
    a multiple of the longest window. `loss_change_4x` is the loss at 4x minus that at 1x, token by
    token: below zero, the model uses the longer context.
    """
    trained = scorer.trained
    context = trained.config.data.sequence_length
    if trained.config.model.positions == "learned":
        raise ConfigError([learned_limit(task, context)], "--tasks")
    longest = MULTIPLES[-1] * context
    encoded = trained.tokenizer.encode_batch([document.text for document in documents])
    texts = [ids[: len(ids) // longest * longest].tolist() for ids in encoded]
    if not any(texts):
        problem = f"{task} needs a document of {longest:,} tokens, 4 times the training context"
        raise ConfigError([problem], "--tasks")
    return lambda: _lengths_result(scorer, texts, context, task)


def _lengths_result(
    scorer: Scorer, texts: Sequence[Sequence[int]], context: int, task: str
) -> Result:
    longest = MULTIPLES[-1] * context
    losses = {}
    for multiple in reversed(MULTIPLES):  # what does not fit in memory fails at once
        window = multiple * context
        rows = max(1, scorer.rows * scorer.window // window)
        reader = Scorer(scorer.trained, window=window, rows=rows, ticking=scorer.ticking)
        # Each window starts anew from end-of-text: no token sees more than its own window.
        requests = [
            Request((scorer.trained.tokenizer.eot_id, *ids[start : start + window]), window)
            for ids in texts
            for start in range(0, len(ids), window)
        ]
        scored = reader.score(requests, f"{task} {multiple}x")
        losses[multiple] = np.concatenate([result.nll for result in scored])
    metrics: Metrics = {}
    by_position = []
    for multiple in MULTIPLES:
        nll = losses[multiple]
        metrics |= _mean_loss(f"loss_{multiple}x", nll, longest)
        if multiple > 1:
            metrics |= _mean_loss(f"loss_change_{multiple}x", nll - losses[1], longest)
        by_position += _by_position(nll, multiple, context)
    details = {"tokens": len(losses[1]), "training_context": context, "by_position": by_position}
    return Result(metrics, details)


def _mean_loss(name: str, nll: np.ndarray, block: int) -> Metrics:
    """Mean over tokens; blocks of `block` tokens, the longest window, count as independent."""
    sums = nll.reshape(-1, block).sum(axis=1)
    stderr = ratio_stderr(sums, np.full(len(sums), float(block)))
    return with_stderr(name, float(nll.mean()), stderr)


def _by_position(nll: np.ndarray, multiple: int, context: int) -> list[dict[str, Any]]:
    """Mean loss of each quarter of a training context, by position in the window."""
    window = multiple * context
    windows = nll.reshape(-1, MULTIPLES[-1] // multiple, window)  # those in each longest window
    borders = np.linspace(0, window, multiple * BUCKETS + 1).astype(int).tolist()
    parts = []
    for start, stop in pairwise(borders):
        piece = windows[:, :, start:stop]
        loss = _mean_loss("loss", piece.ravel(), piece[0].size)
        parts.append({"length": f"{multiple}x", "from": start, "to": stop, **loss})
    return parts
