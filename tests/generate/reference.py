"""Ids that `stream` writes; and greedy ones without a cache, each from the whole window anew."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from gpt_pjit.core.sharding import BATCH_AXES
from gpt_pjit.generate import Sampling, stream
from gpt_pjit.trained import Trained


def generate(
    trained: Trained,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    **options: Any,
) -> list[list[int]]:
    """The ids that `stream` writes after each prompt."""
    sampling = Sampling(temperature, top_k, top_p)
    *_, rows = [], *stream(trained, prompts, max_new_tokens, sampling, **options)
    return [row.tokens for row in rows]


def recompute(trained: Trained, prompts: Sequence[Sequence[int]], n_tokens: int) -> np.ndarray:
    """Ids [B, n_tokens] after prompts of one length; B must divide over the mesh."""
    length = len(prompts[0])
    width = -(-(length + n_tokens) // 32) * 32  # so that several lengths share a program
    windows = np.zeros((len(prompts), width), np.int32)
    windows[:, :length] = prompts
    windows = jax.device_put(windows, NamedSharding(trained.mesh, P(BATCH_AXES)))
    with jax.set_mesh(trained.mesh):
        written = _recompute(
            trained.model.forward,
            trained.weights,
            windows,
            jnp.int32(length),
            n_tokens=n_tokens,
            vocab_size=trained.tokenizer.vocab_size,
        )
    return np.asarray(written)


@partial(jax.jit, static_argnames=("forward", "n_tokens", "vocab_size"))
def _recompute(
    forward: Callable[[Any, jax.Array], jax.Array],
    weights: Any,
    windows_BT: jax.Array,
    length: jax.Array,
    *,
    n_tokens: int,
    vocab_size: int,
) -> jax.Array:
    def step(windows_BT: jax.Array, n_known: jax.Array):
        logits_BTV = forward(weights, windows_BT)
        logits_B1V = jax.lax.dynamic_slice_in_dim(logits_BTV, n_known - 1, 1, axis=1)
        logits_B1V = jax.reshard(logits_B1V, P(BATCH_AXES, None, None))[..., :vocab_size]
        tokens_B1 = jnp.argmax(logits_B1V, axis=-1).astype(jnp.int32)
        windows_BT = jax.lax.dynamic_update_slice_in_dim(windows_BT, tokens_B1, n_known, axis=1)
        return windows_BT, tokens_B1[:, 0]

    counts = length + jnp.arange(n_tokens)
    return jax.reshard(jax.lax.scan(step, windows_BT, counts)[1].T, P())
