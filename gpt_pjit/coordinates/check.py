"""Activations of a model by width, before and after its first steps (Yang et al., 2022)."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_pjit.config import Config, replaced
from gpt_pjit.core.model import Model, open_ends
from gpt_pjit.core.sharding import make_mesh
from gpt_pjit.core.training import build_training, by_layer

VOCABULARY, ROWS, LENGTH = 256, 8, 64
FLAT = 0.5  # a power of the width nearer to 0, which the tables promise, than to 1
WITHOUT = {  # the tables and factors of `core/scaling.py`
    "model.init_rules": (),
    "model.attention_scale": 0.0,
    "model.logit_factor": 1.0,
    "model.residual_factor": 1.0,
    "optim.lr_rules": (),
    "optim.decay_rules": (),
}


def small(config: Config, steps: int) -> Config:
    """The config on few short rows, in float32, at its peak learning rate from the first step."""
    fields = {
        "model.vocab_size": VOCABULARY,
        "model.dtype": "float32",
        "model.remat": "none",  # which compiles sooner
        **{f"model.dropout_{place}": 0.0 for place in ("residual", "attention", "embedding")},
        "data.mask_documents": False,
        "data.sequence_length": LENGTH,
        "data.batch_size": ROWS,
        "optim.steps": 100 * steps,
        "optim.warmup_steps": 0,
        "optim.microbatches": 1,
    }
    return replaced(config, fields)


def activations(model: Model, weights: Any, tokens_BT: jax.Array) -> list[jax.Array]:
    """The residual stream after the embedding and after each block, and the logits."""
    entered, blocks = by_layer(model, weights, tokens_BT, None, lambda x_BTD, _: x_BTD)
    return [entered, *blocks, open_ends(model.config, weights).logits(blocks[-1])]


def measure(config: Config, steps: int) -> dict[str, float]:
    """The mean change of each activation over `steps` steps on one batch, in absolute value."""
    config = small(config, steps)
    training = build_training(config, make_mesh((1, 1, 1), jax.devices()[:1]))
    draw = np.random.default_rng(0)
    ranks = np.arange(1, VOCABULARY + 1)  # as frequent as words: what is common is soon learned
    shape = training.tokens.shape
    rows = draw.choice(VOCABULARY, shape, p=1 / ranks / np.sum(1 / ranks)).astype(np.int32)
    read = jax.jit(partial(activations, training.model))
    with jax.set_mesh(training.mesh):
        tokens = jax.device_put(rows, training.tokens.sharding)
        state = training.init(jax.random.key(config.seed))
        before = read(training.model.weights(state.params), tokens[:, :-1])
        for _ in range(steps):
            state, _ = training.train_step(state, tokens)
        after = read(training.model.weights(state.params), tokens[:, :-1])
        pairs = zip(after, before, strict=True)
        changes = [float(jnp.mean(jnp.abs(new - old))) for new, old in pairs]
    blocks = (f"block {number}" for number in range(1, config.model.n_layers + 1))
    return dict(zip(("embedding", *blocks, "logits"), changes, strict=True))


def slopes(by_width: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """The power of the width with which each activation grows, by least squares."""
    widths = np.log2(list(by_width))
    kinds = next(iter(by_width.values()))
    return {
        kind: float(np.polyfit(widths, np.log2([one[kind] for one in by_width.values()]), 1)[0])
        for kind in kinds
    }
