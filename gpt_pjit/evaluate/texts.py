"""Losses of texts: bits per byte with a sliding window, and the same tokens in longer windows."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.evaluate.batches import Request, rolling_requests
from gpt_pjit.evaluate.losses import (
    Metrics,
    loss_metrics,
    perplexity,
    ratio,
    ratio_stderr,
    with_stderr,
    worst_tokens,
)
from gpt_pjit.evaluate.results import Job, Result
from gpt_pjit.evaluate.scorer import Scorer, learned_limit

MULTIPLES = (1, 2, 4)  # of the training context
BUCKETS = 4  # of positions, in each training context


@dataclass(frozen=True)
class Document:
    """What the model reads, and the size of the original: UTF-8 bytes, and words between spaces."""

    text: str
    bytes: int
    words: int

    @classmethod
    def of(cls, original: str, text: str | None = None) -> Document:
        words = len(re.split(r"\s+", original))  # lm-eval's count
        return cls(original if text is None else text, len(original.encode()), words)


def prepare_texts(scorer: Scorer, documents: Sequence[Document], stride: int, task: str) -> Job:
    """Bits per byte, and perplexity per token, word and byte, of documents scored one by one.

    Standard errors treat documents as independent, or the pieces of a window's length of a single
    document, whatever the stride.
    """
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

    def compute() -> dict[str, Result]:
        scored = scorer.score(requests, task)
        nll = np.concatenate([result.nll for result in scored])
        assert len(nll) == details["tokens"]
        owner_of_token = np.repeat(owner, [len(result.nll) for result in scored])
        greedy = np.concatenate([result.greedy for result in scored])
        metrics = _text_metrics(documents, owner_of_token, nll, greedy, scorer.window)
        worst = worst_tokens(requests, scored, tokenizer)
        return {task: Result(metrics, details | {"worst_tokens": worst})}

    return compute


def _text_metrics(
    documents: Sequence[Document],
    owner: np.ndarray,
    nll: np.ndarray,
    greedy: np.ndarray,
    window: int,
) -> Metrics:
    """`owner`, `nll` and `greedy` are [N], one entry for each token."""
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


def prepare_lengths(scorer: Scorer, documents: Sequence[Document], task: str) -> Job:
    """Nats per token at 1, 2 and 4 times the training context, and by position in the window.

    Every length reads the same tokens in windows that do not overlap: those of each document, up to
    a multiple of the longest window. `loss_change_4x` is the loss at 4x minus that at 1x, token by
    token: below zero, the model uses the longer context.
    """
    trained = scorer.trained
    context = trained.config.data.sequence_length
    if trained.config.model.positions == "learned":
        raise ConfigError([learned_limit("tasks", task, context)])
    longest = MULTIPLES[-1] * context
    encoded = trained.tokenizer.encode_batch([document.text for document in documents])
    texts = [ids[: len(ids) // longest * longest].tolist() for ids in encoded]
    texts = [ids for ids in texts if ids]
    if not texts:
        problem = f"{task} needs a document of {longest:,} tokens, 4 times the training context"
        raise ConfigError([problem], "tasks")
    return lambda: {task: _lengths_result(scorer, texts, context, task)}


def _lengths_result(
    scorer: Scorer, texts: Sequence[Sequence[int]], context: int, task: str
) -> Result:
    longest = MULTIPLES[-1] * context
    losses = {}
    for multiple in reversed(MULTIPLES):  # what does not fit in memory fails at once
        window = multiple * context
        rows = max(1, scorer.rows * scorer.window // window)
        reader = Scorer(scorer.trained, window=window, rows=rows)
        requests = _windows(texts, scorer.trained.tokenizer.eot_id, window)
        scored = reader.score(requests, f"{task} {multiple}x")
        losses[multiple] = np.concatenate([result.nll for result in scored])
    losses = {multiple: losses[multiple] for multiple in MULTIPLES}
    metrics: Metrics = {}
    for multiple, nll in losses.items():
        metrics |= _mean_loss(f"loss_{multiple}x", nll, longest)
        if multiple > 1:
            metrics |= _mean_loss(f"loss_change_{multiple}x", nll - losses[1], longest)
    by_position = [
        part for multiple, nll in losses.items() for part in _by_position(nll, multiple, context)
    ]
    details = {"tokens": len(losses[1]), "training_context": context, "by_position": by_position}
    return Result(metrics, details)


def _windows(texts: Sequence[Sequence[int]], prefix: int, window: int) -> list[Request]:
    """Each window starts anew from `prefix`: no token sees more than its own window."""
    return [
        Request((prefix, *ids[start : start + window]), window)
        for ids in texts
        for start in range(0, len(ids), window)
    ]


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
