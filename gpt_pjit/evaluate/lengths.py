"""Length extrapolation: the loss of the same tokens in windows longer than training's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.evaluate.batches import Request
from gpt_pjit.evaluate.scorer import Scorer, learned_limit
from gpt_pjit.evaluate.statistics import Metrics, ratio_stderr, with_stderr
from gpt_pjit.evaluate.texts import Document, Job, Result

MULTIPLES = (1, 2, 4)
BUCKETS = 4  # of positions, in each training context


def prepare_lengths(scorer: Scorer, documents: Sequence[Document], task: str) -> Job:
    """Nats a token at 1, 2 and 4 times the training context, and by position in the window.

    Every length reads the same tokens, cut into windows that do not overlap: those of each
    document up to a multiple of the longest window. `loss_change_4x` is loss at 4x minus loss at
    1x, token by token: below zero, the model uses the longer context.
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
        raise ConfigError([f"{problem}; give a longer text"], "tasks")
    return lambda: _result(scorer, texts, context, task)


def _result(scorer: Scorer, texts: Sequence[Sequence[int]], context: int, task: str) -> Result:
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
    """Mean over tokens; each `block` of them, of one longest window, is taken as independent."""
    sums = nll.reshape(-1, block).sum(axis=1)
    stderr = ratio_stderr(sums, np.full(len(sums), float(block)))
    return with_stderr(name, float(nll.mean()), stderr)


def _by_position(nll: np.ndarray, multiple: int, context: int) -> list[dict[str, Any]]:
    """Mean loss of each quarter of a training context, by the position in the window."""
    window = multiple * context
    windows = nll.reshape(-1, MULTIPLES[-1] // multiple, window)  # of each longest one
    borders = np.linspace(0, window, multiple * BUCKETS + 1).astype(int).tolist()
    parts = []
    for start, stop in pairwise(borders):
        piece = windows[:, :, start:stop]
        loss = _mean_loss("loss", piece.ravel(), piece[0].size)
        parts.append({"length": f"{multiple}x", "from": start, "to": stop, **loss})
    return parts
