"""What a step does by layer: norms of weights, gradient and updates; activations and attention
logits; tokens that are lost.

A program of its own, which takes a batch before the step does: that of the step stays as it is, to
the bit, whether anyone looks or not.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gpt_pjit.config import Config
from gpt_pjit.core.model import (
    Model,
    attend_causally,
    by_group,
    largest_scores,
    open_block,
    open_ends,
    rotation,
    scan_layers,
    token_positions,
)
from gpt_pjit.core.training.step import TrainState, gradient_of, split_rows, updates_of

LOST = 20.0  # nats: a token that precision, not the text, has made so unlikely


def make_depth(
    config: Config, model: Model, tx: optax.GradientTransformation
) -> Callable[..., dict[str, Any]]:
    """`depth(state, tokens, segments=None)`, of the step that takes the same.

    Returns the share of targets above `LOST` nats, `norms` of weights, gradient and updates, and
    what `activations` returns.
    """

    def lost(nll_BT: jax.Array) -> jax.Array:
        return (nll_BT > LOST).astype(jnp.float32)

    def depth(state: TrainState, tokens: jax.Array, segments: jax.Array | None = None):
        share, gradient = gradient_of(config, model, state, tokens, segments, lost)
        master, updates, _ = updates_of(model, tx, state, gradient)
        trees = {"weights": master, "gradient": gradient, "update": updates}
        found = {name: norms(tree) for name, tree in trees.items()} | {"lost": share}
        # One pass after the other, in the memory of one.
        found, params = jax.lax.optimization_barrier((found, state.params))
        return found | activations(model, params, tokens, segments, config.optim.microbatches)

    return depth


def norms(tree: Any) -> dict[str, jax.Array]:
    """The norm of each entry of the top of a tree of parameters; of `blocks` each layer's, [L]."""
    rest = {name: optax.tree.norm(part) for name, part in tree.items() if name != "blocks"}
    leaves = [w.astype(jnp.float32) for w in jax.tree.leaves(tree["blocks"])]
    squares = [jnp.sum(jnp.square(w), tuple(range(1, w.ndim))) for w in leaves]
    return rest | {"blocks": jnp.sqrt(sum(squares))}


def activations(
    model: Model, params: Any, tokens: jax.Array, segments: jax.Array | None, microbatches: int
) -> dict[str, dict[str, jax.Array]]:
    """Without dropout, of each layer, [L]: the root mean square of the residual stream after it,
    and its largest attention logit.
    """
    weights = model.gather_weights(params)

    def look(x_BTD: jax.Array, largest_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.mean(jnp.square(x_BTD.astype(jnp.float32)), (1, 2)), largest_B

    def one(rows: tuple[jax.Array, jax.Array | None]) -> tuple[jax.Array, jax.Array]:
        tokens_BT, segments_BT = jax.tree.map(lambda of_rows: of_rows[:, :-1], rows)
        return by_layer(model, weights, tokens_BT, segments_BT, look)[1]

    split = jax.tree.map(lambda rows: split_rows(rows, microbatches), (tokens, segments))
    squares_MLB, largest_MLB = jax.lax.map(one, split)
    return {
        "activation": {"blocks": jnp.sqrt(jnp.mean(squares_MLB, (0, 2)))},
        "attention_logit": {"blocks": jnp.max(largest_MLB, (0, 2))},
    }


def by_layer(
    model: Model,
    weights: Any,
    tokens_BT: jax.Array,
    segments_BT: jax.Array | None,
    look: Callable[[jax.Array, jax.Array], Any],
) -> tuple[jax.Array, Any]:
    """The residual stream [B, T, D] after the embedding, and `look(x_BTD, largest_B)` of each
    layer, [L, ...]: of the stream after it, and of its `largest_scores`.
    """
    c, positions_BT = model.config, token_positions(tokens_BT, segments_BT)
    entered_BTD = open_ends(c, weights).enter(tokens_BT, positions_BT)
    angles = rotation(c, positions_BT)

    def run(x_BTD: jax.Array, block: Any, window: int) -> tuple[jax.Array, Any]:
        def attend(heads, key):
            q_HBTK, k_GBTK, _ = heads.ready()
            met = by_group(q_HBTK, k_GBTK.shape[0]), k_GBTK
            largest_B = largest_scores(c.positions == "alibi", window, *met, segments_BT)
            return attend_causally(c, window, segments_BT, heads, key), largest_B

        x_BTD, largest_B = open_block(c, model.gather_layer(block))(x_BTD, attend, angles)
        return x_BTD, look(x_BTD, largest_B)

    return entered_BTD, scan_layers(c, run, entered_BTD, weights["blocks"])[1]


def depth_metrics(found: dict[str, Any]) -> dict[str, float]:
    """`{"depth/gradient/layer_03": 0.1, "depth/gradient/embed": ..., "depth/lost": 0.0}`."""
    found = jax.device_get(found)
    metrics = {"depth/lost": float(found.pop("lost"))}
    for kind, by_name in found.items():
        for name, value in by_name.items():
            if name != "blocks":
                metrics[f"depth/{kind}/{name}"] = float(value)
        for layer, value in enumerate(by_name["blocks"].tolist()):
            metrics[f"depth/{kind}/layer_{layer:02}"] = value
    return metrics
