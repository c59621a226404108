"""Dropout with masks that depend only on key and position: a bit for each element."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.extend.random import threefry2x32_p
from jax.sharding import PartitionSpec as P

DIGITS = 8  # binary digits of a rate
STEPS = 2**DIGITS
BITS = (np.uint32(1) << np.arange(32, dtype=np.uint32))[:, None, None]  # of a word, [32, 1, 1]


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes elements of `x` with probability `rate`, rounded to 1/256; without a `key`, none.

    The mask is the same on every mesh. The next-to-last dimension must not be split.
    """
    if key is None or rate == 0:
        return x
    return drop(x, rate, draw_mask(key, rate, x.shape, jax.typeof(x).sharding.spec))


@jax.named_scope("dropout")
def drop(x: jax.Array, rate: float, mask: jax.Array | None) -> jax.Array:
    """Zero where a bit of `draw_mask` is 1, else `x` over the probability of being kept; None
    keeps all.
    """
    if mask is None:
        return x
    scaled = x * (1 / kept(rate))
    return jnp.where(unpacked(mask, x.shape[-2]), 0, scaled).astype(x.dtype)


def unpacked(words: jax.Array, rows: int) -> jax.Array:
    """The bits of a mask, uint32 [..., rows / 32, columns], as bool [..., rows, columns]."""
    bits = words[..., None, :, :] & jnp.expand_dims(BITS, range(words.ndim - 2))
    return (bits != 0).reshape(*words.shape[:-2], -1, words.shape[-1])[..., :rows, :]


@jax.named_scope("dropout")
def draw_mask(key: jax.Array, rate: float, shape: tuple[int, ...], spec: P) -> jax.Array:
    """A bit for each element, 1 if it is dropped: uint32, 32 rows of `shape` to a word, sharded as
    `spec`. Each device draws its own part.

    Random words are most of the cost of dropout on a TPU. A bit is 1 with the probability that
    0.b1b2..b8 is in binary: from the last digit that is 1, `or` a random bit for a 1, `and` one for
    a 0. So a word for each digit decides 32 elements. They are rows, a 32nd of the next-to-last
    dimension apart; the last dimension lies in the lanes of a TPU, where splitting it moves data.
    """
    words_shape = (*shape[:-2], -(-shape[-2] // 32), shape[-1])
    threshold, digits = _threshold(rate), DIGITS
    while threshold % 2 == 0:
        threshold, digits = threshold // 2, digits - 1
    mask, *rest = _random_words(key, digits, words_shape, spec)
    for digit, word in enumerate(rest, 1):
        mask = mask | word if threshold >> digit & 1 else mask & word
    # Without the barrier, the compiler draws the words again wherever the mask is used.
    return checkpoint_name(jax.lax.optimization_barrier(mask), "dropout_mask")


def _random_words(key: jax.Array, n: int, shape: tuple[int, ...], spec: P) -> list[jax.Array]:
    """`n` arrays of random words. Threefry makes two at a time, of a number and a place; places
    repeat after 2^32 words, which decide 1.4e11 elements.
    """
    first, second = jax.random.key_data(key)
    place = jnp.uint32(0)
    for axis, size in enumerate(shape):
        along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis, out_sharding=spec)
        place = place * np.uint32(size) + along
    pairs = (
        threefry2x32_p.bind(first, second, jnp.full_like(place, number), place)
        for number in range(-(-n // 2))
    )
    return [word for pair in pairs for word in pair][:n]


def kept(rate: float) -> float:
    """The probability that an element is kept."""
    return 1 - _threshold(rate) / STEPS


def _threshold(rate: float) -> int:
    """How many of 256 elements are dropped: 26 for a rate of 0.1, which is then 0.1016."""
    return min(max(round(rate * STEPS), 1), STEPS - 1)
