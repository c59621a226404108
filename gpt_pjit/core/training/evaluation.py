"""Loss on held-out text, in three units."""

import math
from collections.abc import Iterable, Mapping
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
    nll_BT = token_nll(
        model.forward(weights, tokens[:, :-1], inputs), tokens[:, 1:], model.config.logit_softcap
    )
    return jnp.stack([jnp.sum(nll_BT * mask), jnp.sum(mask)])


def validation_metrics(
    model: Model,
    params: Any,
    sets: Mapping[str, Iterable[tuple[np.ndarray | None, ...]]],
    batch_size: int,
    tokens_per_byte: float,
) -> dict[str, float]:
    """Loss in nats a token, perplexity, and bits per byte, over this host's rows of each batch of
    the sets; where there are several, also the loss of each.

    A batch is what `eval_step` takes: tokens, mask, and segments or None; `batch_size` is its rows
    on all hosts. Bits per byte is loss / ln 2 * tokens_per_byte, with the split's tokens
    (end-of-text included) and its bytes of source text.
    """
    weights = model.weights(params)
    sharding = NamedSharding(model.mesh, TOKENS)
    totals = np.zeros(2)  # float64: float32 loses digits over many batches
    of_sets = {name: np.zeros(2) for name in sets}
    for name, batches in sets.items():
        for batch in batches:
            arrays = global_batch(sharding, batch, batch_size)
            # Fetched one at a time: XLA on CPU deadlocks when the collectives of several steps are
            # in flight.
            found = jax.device_get(eval_step(model, weights, *arrays))
            totals += found
            of_sets[name] += found
    loss, *losses = (float(nats / count) for nats, count in (totals, *of_sets.values()))
    by_set = {f"validation/loss/{name}": one for name, one in zip(sets, losses, strict=True)}
    return {
        "validation/loss": loss,
        "validation/perplexity": math.exp(min(loss, 700.0)),  # exp(710) is infinite
        "validation/bits_per_byte": loss / math.log(2) * tokens_per_byte,
    } | (by_set if len(sets) > 1 else {})
