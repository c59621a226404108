"""Positions of tokens, and Attention with Linear Biases (Press et al., 2021)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np


def token_positions(tokens_BT: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
    """int32 [B, T]: the place of each token in its row, or in its segment of the row."""
    places = jnp.zeros_like(tokens_BT) + jnp.arange(tokens_BT.shape[1])[None]
    if segments_BT is None:
        return places
    begins = jnp.pad(segments_BT[:, 1:] != segments_BT[:, :-1], ((0, 0), (1, 0)))
    return places - jax.lax.cummax(jnp.where(begins, places, 0), axis=1)


def alibi_slopes(n_heads: int) -> np.ndarray:
    """The slope of each head, float32 [H]: 2^(-8/n), 2^(-16/n), ... if n is a power of two;
    otherwise the slopes of the power of two below, then every other slope of the one above.
    """
    power = 2 ** math.floor(math.log2(n_heads))
    slopes = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
    between = [2.0 ** (-4 * (i + 1) / power) for i in range(0, 2 * power, 2)]
    return np.array((slopes + between)[:n_heads], np.float32)


def alibi_bias(n_heads: int, n_keys: int) -> np.ndarray:
    """The bias of each key, float32 [H, 1, S]: slope times the key's position.

    The paper's slope * (key - query) differs by a constant per query, to which softmax is blind;
    without it the bias is a vector, not a matrix, and costs the score matmul nothing. For the same
    reason positions need not restart where documents begin.
    """
    return alibi_slopes(n_heads)[:, None, None] * np.arange(n_keys, dtype=np.float32)
