"""Dropout with a mask that depends only on key and position: four elements per random word."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

STEPS = 256  # levels of a rate: one byte decides
SHIFTS = np.arange(0, 32, 8, dtype=np.uint32)[:, None, None]  # of the bytes of a word, [4, 1, 1]


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes elements of `x` with probability `rate`, rounded to 1/256; without a `key`, none.

    The mask is the same on every mesh. The next-to-last dimension must not be split.
    """
    if key is None or rate == 0:
        return x
    return drop(x, rate, draw_kept(key, rate, x.shape, jax.typeof(x).sharding.spec))


@jax.named_scope("dropout")
def drop(x: jax.Array, rate: float, kept: jax.Array | None) -> jax.Array:
    """Zero where not `kept`, else `x` over the probability of being kept; None keeps all."""
    if kept is None:
        return x
    return jnp.where(kept, x * (1 / (1 - _threshold(rate) / STEPS)), 0).astype(x.dtype)


@jax.named_scope("dropout")
def draw_kept(key: jax.Array, rate: float, shape: tuple[int, ...], spec: P) -> jax.Array:
    """Which elements to keep, bool `shape`, sharded as `spec`; each device draws its own part.

    Random words are most of the cost of dropout on a TPU, so the four bytes of a word serve four
    rows, a quarter of the next-to-last dimension apart. The last dimension lies in the lanes of a
    TPU, where splitting it would move data.
    """
    rows = -(-shape[-2] // 4)
    words_shape = (*shape[:-2], rows, shape[-1])
    words = jax.random.bits(key, words_shape, jnp.uint32, out_sharding=spec)
    # Without the barrier, the compiler draws a word again for each of its bytes.
    words = jax.lax.optimization_barrier(words)[..., None, :, :]
    bytes_ = (words >> jnp.expand_dims(SHIFTS, tuple(range(len(shape) - 2)))) & np.uint32(STEPS - 1)
    bytes_ = bytes_.reshape(*shape[:-2], 4 * rows, shape[-1])[..., : shape[-2], :]
    return checkpoint_name(bytes_.astype(jnp.int32) >= _threshold(rate), "dropout_kept")


def _threshold(rate: float) -> int:
    """How many of the 256 bytes drop an element: 26 for a rate of 0.1, which is then 0.1016."""
    return min(max(round(rate * STEPS), 1), STEPS - 1)
