"""Drawing one token for each row from its logits: pure functions of logits and keys."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

LOWEST = 1e-30  # temperature: in float32 the likeliest token is certain long before


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn: `temperature` 0 takes the likeliest; else of the `top_k` likeliest (0:
    of all) the fewest that hold a share of at least `top_p`, after the temperature.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


def draw(logits_BV: jax.Array, keys_B: jax.Array, sampling: Sampling) -> jax.Array:
    """A token for each row, int32 [B]; its row of logits and its key decide, and nothing else."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    # Nothing above 0, and no division by less than float32 can take: no temperature is too low.
    logits_BV = logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True)
    logits_BV = logits_BV / max(sampling.temperature, LOWEST)
    kept_BV = keep_likeliest(logits_BV, sampling.top_k, sampling.top_p)
    return jax.vmap(jax.random.categorical)(keys_B, kept_BV).astype(jnp.int32)


def keep_likeliest(logits_BV: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """The logits, -inf where they are not among those that may be drawn; equal ones stay together.

    `top_p` is the nucleus of Holtzman et al. (2020): the likeliest tokens up to and with the one
    that brings their sum to `top_p`, which is taken after `top_k`.
    """
    vocabulary = logits_BV.shape[-1]
    top_k = min(top_k, vocabulary) or vocabulary
    if top_k == vocabulary and top_p == 1:
        return logits_BV
    best_BK = jax.lax.top_k(logits_BV, top_k)[0]
    shares_BK = jax.nn.softmax(best_BK, axis=-1)
    before_BK = jnp.cumsum(shares_BK, axis=-1) - shares_BK
    n_kept_B1 = jnp.maximum(jnp.sum(before_BK < top_p, axis=-1, keepdims=True), 1)
    least_B1 = jnp.take_along_axis(best_BK, n_kept_B1 - 1, axis=-1)
    return jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
