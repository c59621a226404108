"""Means, ratios and their standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Metrics = dict[str, float | None]


def with_stderr(name: str, value: float | None, stderr: float | None) -> Metrics:
    return {name: value, f"{name}_stderr": stderr}


def mean(name: str, values: Sequence[float] | np.ndarray) -> Metrics:
    """The mean, and the sample's standard deviation over sqrt(n)."""
    array = np.asarray(values, np.float64)
    n = len(array)
    stderr = float(array.std(ddof=1)) / math.sqrt(n) if n > 1 else None
    return with_stderr(name, float(array.mean()), stderr)


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
