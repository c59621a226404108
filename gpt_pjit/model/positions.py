"""Attention with Linear Biases (Press et al., 2021)."""

from __future__ import annotations

import math

import numpy as np


def alibi_slopes(n_heads: int) -> np.ndarray:
    """The slope of each head, float32 [H]: 2^(-8/n), 2^(-16/n), ... for n a power of two; else
    those of the power of two below, then every other one of the power of two above.
    """
    power = 2 ** math.floor(math.log2(n_heads))
    slopes = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
    between = [2.0 ** (-4 * (i + 1) / power) for i in range(0, 2 * power, 2)]
    return np.array((slopes + between)[:n_heads], np.float32)


def alibi_bias(n_heads: int, n_keys: int) -> np.ndarray:
    """The bias of each key, float32 [H, 1, S]: slope times the key's position.

    The paper's slope * (key - query) differs by a constant for each query, which softmax does not
    see; without it the bias is a vector, not a matrix, and costs the score matmul nothing.
    """
    return alibi_slopes(n_heads)[:, None, None] * np.arange(n_keys, dtype=np.float32)
