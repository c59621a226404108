"""Positions of tokens; Attention with Linear Biases (Press et al., 2021), and rotary embeddings
(Su et al., 2021).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from gpt_pjit.config import ModelConfig

Rotation = tuple[jax.Array, jax.Array]  # cosines and sines, float32 [B, T, R]; B may be 1


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


@jax.named_scope("rotary")
def rotation(c: ModelConfig, positions_BT: jax.Array) -> Rotation | None:
    """The angles by which heads rotate at each position, if they do."""
    if c.positions != "rope":
        return None
    frequencies = jnp.asarray(rotary_frequencies(c), jnp.float32)
    angles_BTR = positions_BT.astype(jnp.float32)[..., None] * frequencies
    cos, sin = jnp.cos(angles_BTR), jnp.sin(angles_BTR)
    return checkpoint_name(cos, "rotation"), checkpoint_name(sin, "rotation")


def rotary_frequencies(c: ModelConfig) -> np.ndarray:
    """Radians a position of each pair, float32 [1, 1, R], with the scaling of Llama 3."""
    rotated = rotated_size(c)
    frequencies = c.rope_theta ** -(np.arange(0, rotated, 2) / rotated)
    if c.rope_scaling:
        factor, low, high, trained_length = c.rope_scaling
        turns = trained_length * frequencies / (2 * np.pi)
        kept = np.clip((turns - low) / (high - low), 0, 1)  # the rest is slowed down
        frequencies = frequencies * (kept + (1 - kept) / factor)
    return frequencies.astype(np.float32)[None, None]


def rotated_size(c: ModelConfig) -> int:
    """How many elements of each head rotate, in pairs that are half of them apart."""
    return int(c.sizes["K"] * c.rope_fraction)


@jax.custom_vjp
def rotate(x_HBTK: jax.Array, rotation: Rotation) -> jax.Array:
    """Heads with their first elements rotated, in float32; the others as they are."""
    return jax.lax.platform_dependent(
        x_HBTK, *rotation, tpu=_rotate_by_product, default=_rotate_halves
    )


def _rotate_forward(x_HBTK: jax.Array, rotation: Rotation) -> tuple[jax.Array, Rotation]:
    return rotate(x_HBTK, rotation), rotation


def _rotate_back(rotation: Rotation, gradient_HBTK: jax.Array) -> tuple[jax.Array, None]:
    cos, sin = rotation
    return rotate(gradient_HBTK, (cos, -sin)), None


rotate.defvjp(_rotate_forward, _rotate_back)


@jax.named_scope("rotary")
def _rotate_halves(x_HBTK: jax.Array, cos_BTR: jax.Array, sin_BTR: jax.Array) -> jax.Array:
    n_pairs = cos_BTR.shape[-1]
    x = x_HBTK[..., : 2 * n_pairs].astype(jnp.float32)
    a, b = x[..., :n_pairs], x[..., n_pairs:]
    cos, sin = cos_BTR[None], sin_BTR[None]
    turned = [a * cos - b * sin, b * cos + a * sin]
    rest = x_HBTK[..., 2 * n_pairs :]
    return jnp.concatenate([part.astype(x_HBTK.dtype) for part in turned] + [rest], axis=-1)


@jax.named_scope("rotary")
def _rotate_by_product(x_HBTK: jax.Array, cos_BTR: jax.Array, sin_BTR: jax.Array) -> jax.Array:
    """The same numbers. A TPU does not part a head into halves cheaply, and swaps them, with signs,
    by a small product, which is exact.
    """
    cos_BTK, sin_BTK, swap_KK = as_product((cos_BTR, sin_BTR), x_HBTK)
    swapped = jnp.einsum(
        "HBTK,KJ->HBTJ",
        x_HBTK,
        swap_KK,
        precision="highest",
        preferred_element_type=jnp.float32,
    )
    turned = x_HBTK.astype(jnp.float32) * cos_BTK[None] + swapped * sin_BTK[None]
    return turned.astype(x_HBTK.dtype)


def as_product(rotation: Rotation, x_HBTK: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What rotates `x` as `x * cos + (x @ swap) * sin`: cosines and sines for all elements of a
    head, float32 [B, T, K], and the matrix that swaps the two of a pair, [K, K] of `x.dtype`.
    """
    n_pairs, size = rotation[0].shape[-1], x_HBTK.shape[-1]
    swap = np.zeros((size, size), np.float32)
    pair = np.arange(n_pairs)
    swap[n_pairs + pair, pair], swap[pair, n_pairs + pair] = -1, 1
    rest = [(0, 0), (0, 0), (0, size - 2 * n_pairs)]
    cos, sin = (jnp.concatenate([x_BTR] * 2, axis=-1) for x_BTR in rotation)
    return (
        jnp.pad(cos, rest, constant_values=1),
        jnp.pad(sin, rest),
        jnp.asarray(swap, x_HBTK.dtype),
    )
