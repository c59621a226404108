"""What a task gives: ratios, standard errors, and the distribution of token losses."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt_pjit.core.tokens import Tokenizer
from gpt_pjit.evaluate.scorer import Request, Scored

Metrics = dict[str, float | None]
Details = dict[str, Any]

QUANTILES = (0.5, 0.9, 0.99, 0.999)
HIGH = 20.0  # nats: a probability of 2e-9; a uniform guess among 50,000 tokens costs 10.8
SUSPICIOUS_SHARE = 0.01  # of the total loss
WORST = 20
BEFORE = 12  # tokens shown before a bad one
SHARES = ("share_above_20", "loss_share_above_20")
QUANTILE_NAMES = tuple(f"nll_quantile_{q:g}" for q in QUANTILES)
DISTRIBUTION = (*QUANTILE_NAMES, "nll_max", *SHARES)


@dataclass(frozen=True)
class Result:
    """The metrics of a task, with `_stderr` beside each estimate, and what explains them."""

    metrics: Metrics
    details: Details


# A task ready to be scored; a group gives the results of all its tasks.
Job = Callable[[], dict[str, Result]]


def with_stderr(name: str, value: float | None, stderr: float | None) -> Metrics:
    return {name: value, f"{name}_stderr": stderr}


def ratio_stderr(parts: np.ndarray, sizes: np.ndarray) -> float | None:
    """Standard error of `sum(parts) / sum(sizes)`, both float64 [N], for N independent clusters.

    The linearised ratio estimator: residuals parts - ratio * sizes. None for fewer than two.
    """
    n = len(parts)
    if n < 2:
        return None
    residuals = parts - parts.sum() / sizes.sum() * sizes
    return float(math.sqrt(n / (n - 1) * np.sum(residuals**2)) / sizes.sum())


def ratio(name: str, parts: np.ndarray, sizes: np.ndarray) -> Metrics:
    """`sum(parts) / sum(sizes)` of clusters, with `ratio_stderr`; 0 where there are no sizes."""
    if not sizes.sum():
        return with_stderr(name, 0.0, None)
    return with_stderr(name, float(parts.sum() / sizes.sum()), ratio_stderr(parts, sizes))


def perplexity(name: str, nats: float, stderr: float | None) -> Metrics:
    """The exponential of a mean in nats, None above e^700; standard error by the delta method."""
    if nats > 700:  # exp(710) is infinite
        return with_stderr(name, None, None)
    value = math.exp(nats)
    return with_stderr(name, value, None if stderr is None else value * stderr)


def loss_metrics(nll: np.ndarray, cluster: np.ndarray) -> Metrics:
    """Quantiles, maximum and tail of token losses in nats, float64 [N].

    `share_above_20` counts tokens, `loss_share_above_20` their part of the summed loss. `cluster`,
    int [N] from 0, says which tokens belong together in the standard errors.
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
    if (metrics.get("loss_share_above_20") or 0.0) < SUSPICIOUS_SHARE:
        return None
    return (
        f"{metrics['share_above_20']:.3%} of the tokens cost more than {HIGH:.0f} nats and make up "
        f"{metrics['loss_share_above_20']:.0%} of the loss (maximum {metrics['nll_max']:.1f}). "
        "Suspect softmax, logits or parameters in bfloat16, or another tokenizer than the model's"
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
