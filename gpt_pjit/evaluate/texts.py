"""Bits per byte of texts, with a sliding window: every byte is predicted exactly once."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.evaluate.batches import Request
from gpt_pjit.evaluate.losses import loss_metrics, worst_tokens
from gpt_pjit.evaluate.requests import rolling_requests
from gpt_pjit.evaluate.scorer import Scorer
from gpt_pjit.evaluate.statistics import Metrics, perplexity, ratio, ratio_stderr, with_stderr


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


@dataclass(frozen=True)
class Result:
    """The metrics of a task, with `_stderr` beside each estimate, and what explains them."""

    metrics: Metrics
    details: dict[str, Any] = field(default_factory=dict)


# A task whose requests are built: what can be wrong with its input has been said.
Job = Callable[[], Result]


def decoded(content: bytes, source: str) -> str:
    """The text of `content`; ConfigError, with the place, where it is no UTF-8."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        place = f"byte {error.start} of what is scored"
        problem = f"{source} is no UTF-8 text at {place}: {error.reason}; convert it"
        raise ConfigError([problem]) from None


def prepare_texts(scorer: Scorer, documents: Sequence[Document], stride: int, task: str) -> Job:
    """Bits per byte, and perplexity per token, word and byte, of documents scored one by one.

    Standard errors take documents as independent, or of a single one pieces as long as a window,
    whatever the stride.
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
        raise ConfigError([f"{task} holds no text; give a file with some"], "evaluation")
    details = {
        "documents": len(documents),
        "bytes": sum(document.bytes for document in documents),
        "words": sum(document.words for document in documents),
        "tokens": sum(map(len, encoded)),
        "window": scorer.window,
        "stride": stride,
        "text_changed_by_tokenizer": any(tokenizer.changes(d.text) for d in documents),
    }

    def compute() -> Result:
        scored = scorer.score(requests, task)
        nll = np.concatenate([result.nll for result in scored])
        assert len(nll) == details["tokens"]
        owner_of_token = np.repeat(owner, [len(result.nll) for result in scored])
        greedy = np.concatenate([result.greedy for result in scored])
        metrics = _metrics(documents, owner_of_token, nll, greedy, scorer.window)
        worst = worst_tokens(requests, scored, tokenizer)
        return Result(metrics, details | {"worst_tokens": worst})

    return compute


def _metrics(
    documents: Sequence[Document],
    owner: np.ndarray,
    nll: np.ndarray,
    greedy: np.ndarray,
    window: int,
) -> Metrics:
    """`owner`, `nll` and `greedy` are [N], one for each token."""
    cluster, n = owner, len(documents)
    sizes: dict[str, Any] = {
        "byte": np.array([document.bytes for document in documents], np.float64),
        "word": np.array([document.words for document in documents], np.float64),
    }
    if n == 1:  # pieces as long as a window, each with its tokens' part of the bytes and words
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
