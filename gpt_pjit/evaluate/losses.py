"""The distribution of token losses: what a mean, and still more an accuracy, can hide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt_pjit.core.tokens import Tokenizer
from gpt_pjit.evaluate.batches import Request
from gpt_pjit.evaluate.scorer import Scored
from gpt_pjit.evaluate.statistics import Metrics, ratio

QUANTILES = (0.5, 0.9, 0.99, 0.999)
HIGH = 20.0  # nats: a probability of 2e-9; drawing blindly from 50,000 tokens costs 10.8
SUSPICIOUS_SHARE = 0.01  # of the total loss
WORST = 20
BEFORE = 12  # tokens shown before a bad one
SHARES = ("share_above_20", "loss_share_above_20")
QUANTILE_NAMES = tuple(f"nll_quantile_{q:g}" for q in QUANTILES)
DISTRIBUTION = (*QUANTILE_NAMES, "nll_max", *SHARES)


def loss_metrics(nll: np.ndarray, cluster: np.ndarray) -> Metrics:
    """Quantiles, maximum and tail of token losses in nats, float64 [N].

    `share_above_20` counts tokens, `loss_share_above_20` their part of the summed loss; for their
    standard errors, `cluster`, int [N], says from 0 on which tokens belong together.
    """
    high = nll > HIGH
    quantiles = map(float, np.quantile(nll, QUANTILES))
    metrics: Metrics = dict(zip(QUANTILE_NAMES, quantiles, strict=True))
    metrics["nll_max"] = float(nll.max())
    for name, sizes in zip(SHARES, (np.ones(len(nll)), nll), strict=True):
        metrics |= ratio(name, np.bincount(cluster, sizes * high), np.bincount(cluster, sizes))
    return metrics


def warning(metrics: dict[str, Any]) -> str | None:
    """One line where a few impossible tokens carry the loss; None for a sound distribution."""
    if metrics.get("loss_share_above_20", 0.0) < SUSPICIOUS_SHARE:
        return None
    return (
        f"{metrics['share_above_20']:.3%} of the tokens cost more than {HIGH:.0f} nats and make up "
        f"{metrics['loss_share_above_20']:.0%} of the loss (maximum {metrics['nll_max']:.1f}): no "
        "sound model is so sure and so wrong. Suspect softmax, logits or parameters in bfloat16, "
        "or a tokenizer or text that is not the model's"
    )


def worst_tokens(
    requests: Sequence[Request], scored: Sequence[Scored], tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """The tokens of highest loss, each with its text and the text before it."""
    candidates = []
    for request, result in zip(requests, scored, strict=True):
        first = len(request.tokens) - request.scored
        for place in np.argsort(result.nll)[-WORST:]:
            candidates.append((float(result.nll[place]), request.tokens, first + int(place)))
    candidates.sort(key=lambda candidate: -candidate[0])
    return [
        {
            "nll": nll,
            "token": int(tokens[place]),
            "text": tokenizer.decode(tokens[place : place + 1]),
            "before": tokenizer.decode(tokens[max(0, place - BEFORE) : place]),
        }
        for nll, tokens, place in candidates[:WORST]
    ]
