"""Loss on held-out text, in three units."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from gpt_pjit.runtime import global_batch
from gpt_pjit.training.program import Program


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
    weights = program.weights(params)
    rows = program.tokens.shape[0]
    sums = []
    for batch in batches:
        sums.append(program.eval_step(weights, *global_batch(program.tokens.sharding, batch, rows)))
    nats, count = np.asarray(jax.device_get(sums), np.float64).sum(axis=0)
    loss = float(nats / count)
    return {
        "validation/loss": loss,
        "validation/perplexity": math.exp(min(loss, 700.0)),  # exp(710) is infinite
        "validation/bits_per_byte": loss / math.log(2) * tokens_per_byte,
    }
