"""Loss on held-out text, in three units."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from gpt_pjit.core.training.program import Program


def validation_metrics(
    program: Program,
    params: Any,
    batches: Iterable[tuple[np.ndarray | None, ...]],
    tokens_per_byte: float,
) -> dict[str, float]:
    """Loss in nats a token, perplexity, and bits per byte, over this host's rows of each batch.

    A batch is what `eval_step` takes: tokens, mask, and segments or None.

    Bits per byte is loss / ln 2 * tokens_per_byte, with the split's tokens (end-of-text included)
    and its bytes of source text.
    """
    from gpt_pjit.core.runtime import (
        global_batch,  # here: who only looks at a program needs no writers
    )

    weights = program.weights(params)
    rows = program.tokens.shape[0]
    totals = jax.device_put(np.zeros(2, np.float32), NamedSharding(program.mesh, P()))
    for batch in batches:
        arrays = global_batch(program.tokens.sharding, batch, rows)
        # One at a time: XLA on CPU deadlocks when the collectives of several steps are under way.
        totals = jax.block_until_ready(program.eval_step(totals, weights, *arrays))
    nats, count = jax.device_get(totals)
    loss = float(nats / count)
    return {
        "validation/loss": loss,
        "validation/perplexity": math.exp(min(loss, 700.0)),  # exp(710) is infinite
        "validation/bits_per_byte": loss / math.log(2) * tokens_per_byte,
    }
