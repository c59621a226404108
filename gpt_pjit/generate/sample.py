"""Continuing a prompt: the whole window is computed anew for each token, any length of text."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P


@partial(jax.jit, static_argnames=("forward", "context", "n_tokens", "temperature"))
def continue_tokens(
    forward: Callable[[Any, jax.Array], jax.Array],
    weights: Any,
    window: jax.Array,
    length: jax.Array,
    key: jax.Array,
    *,
    context: int,
    n_tokens: int,
    temperature: float,
) -> jax.Array:
    """`n_tokens` sampled ids after the first `length` ids of `window` [1, context]."""

    def step(carry: tuple[jax.Array, jax.Array], key: jax.Array):
        window, length = carry
        logits = jax.reshard(forward(weights, window), P(None, None, None))[0, length - 1]
        token = jax.random.categorical(key, logits / temperature).astype(window.dtype)
        full = length == context
        window = jnp.where(full, jnp.roll(window, -1, axis=1), window)
        length = jnp.where(full, length, length + 1)
        return (window.at[0, length - 1].set(token), length), token

    return jax.lax.scan(step, (window, length), jax.random.split(key, n_tokens))[1]


def continue_prompt(
    forward: Callable[[Any, jax.Array], jax.Array],
    weights: Any,
    prompt: list[int],
    *,
    context: int,
    n_tokens: int,
    temperature: float,
    seed: int,
) -> list[int]:
    """Token ids that continue `prompt` (at least one id; its last `context` ids are seen)."""
    prompt = prompt[-context:]
    window = np.zeros((1, context), np.int32)
    window[0, : len(prompt)] = prompt
    new = continue_tokens(
        forward,
        weights,
        jnp.asarray(window),
        jnp.int32(len(prompt)),
        jax.random.key(seed),
        context=context,
        n_tokens=n_tokens,
        temperature=temperature,
    )
    return np.asarray(new).tolist()
