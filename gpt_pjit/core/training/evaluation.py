"""Loss on held-out text, in three units."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from gpt_pjit.core.model import Model, token_nll
from gpt_pjit.core.runtime import global_batch
from gpt_pjit.core.training.step import TOKENS


@partial(jax.jit, static_argnums=0)
def eval_step(
    model: Model,
    weights: Any,
    tokens: jax.Array,
    mask: jax.Array,
    segments: jax.Array | None = None,
) -> jax.Array:
    """float32 [2]: the summed nats of the predictions in the mask, and their number."""
    inputs = None if segments is None else segments[:, :-1]
    nll_BT = token_nll(model.forward(weights, tokens[:, :-1], inputs), tokens[:, 1:])
    return jnp.stack([jnp.sum(nll_BT * mask), jnp.sum(mask)])


def validation_metrics(
    model: Model,
    params: Any,
    batches: Iterable[tuple[np.ndarray | None, ...]],
    batch_size: int,
    tokens_per_byte: float,
) -> dict[str, float]:
    """Loss in nats a token, perplexity, and bits per byte, over this host's rows of each batch.

    A batch is what `eval_step` takes: tokens, mask, and segments or None; `batch_size` is its rows
    on all hosts. Bits per byte is loss / ln 2 * tokens_per_byte, with the split's tokens
    (end-of-text included) and its bytes of source text.
    """
    weights = model.weights(params)
    sharding = NamedSharding(model.mesh, TOKENS)
    totals = np.zeros(2)  # float64: float32 loses digits over many batches
    for batch in batches:
        arrays = global_batch(sharding, batch, batch_size)
        # Fetched one at a time: XLA on CPU deadlocks when the collectives of several steps are
        # in flight.
        totals += jax.device_get(eval_step(model, weights, *arrays))
    nats, count = totals.tolist()
    loss = nats / count
    return {
        "validation/loss": loss,
        "validation/perplexity": math.exp(min(loss, 700.0)),  # exp(710) is infinite
        "validation/bits_per_byte": loss / math.log(2) * tokens_per_byte,
    }
