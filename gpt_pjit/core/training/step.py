"""The training step: gather once, accumulate unreduced, reduce once, update in place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from gpt_pjit.config import Config
from gpt_pjit.core.model import extend, forward, token_nll
from gpt_pjit.core.sharding import (
    BATCH_AXES,
    Placement,
    match_rules,
    matrix_rules,
    over_batch_axes,
    values,
    without_batch_axes,
)
from gpt_pjit.core.training.optimizer import learning_rate

TOKENS = P(BATCH_AXES, None)  # [B, T + 1]


class TrainState(NamedTuple):
    """Everything that a checkpoint holds; `step` counts the updates made.

    Leaves are arrays, or what describes them: shapes, specs.
    """

    step: Any
    params: Any
    opt_state: Any


def make_weights(config: Config, placement: Placement) -> Callable[[Any], Any]:
    """`weights(params)`: matrices cast to the compute dtype and moved to the compute specs.

    The cast comes first, so that a gather moves bfloat16.
    """
    dtype = jnp.dtype(config.model.dtype)

    def weights(params: Any) -> Any:
        with jax.named_scope("gather_weights"):
            is_matrix = values(match_rules(matrix_rules(bias=config.model.bias), params))
            cast = jax.tree.map(lambda w, m: w.astype(dtype) if m else w, params, is_matrix)
            return jax.tree.map(jax.reshard, cast, placement.compute)

    return weights


def make_at_use(placement: Placement, kind: str | None) -> Callable[[Any], Any]:
    """`at_use(block)`: one layer's weights made whole over the batch axes, where they are not yet.

    `kind="reduced"` for a differentiated pass, None for one that is not.
    """
    layer_specs = jax.tree.map(lambda spec: P(*spec[1:]), placement.compute["blocks"])

    def gather(w: jax.Array, spec: P) -> jax.Array:
        whole = without_batch_axes(spec)
        if whole == spec:
            return w
        with jax.named_scope("gather_layer"):
            w = jax.reshard(w, over_batch_axes(whole, kind=kind) if kind else whole)
        return w

    return lambda block: jax.tree.map(gather, block, layer_specs)


def make_train_step(
    config: Config, placement: Placement, tx: optax.GradientTransformation
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """`train_step(state, tokens, segments=None)`; returns the new state and metrics.

    Tokens are int32 [B, T + 1], and so are `segments`, the documents that are not to see each
    other, if there are such.
    """
    c, microbatches = config.model, config.optim.microbatches
    weights_of = make_weights(config, placement)
    at_use = make_at_use(placement, "reduced")
    reduced = jax.tree.map(lambda spec: over_batch_axes(spec, kind="reduced"), placement.compute)
    summands = jax.tree.map(lambda spec: over_batch_axes(spec, kind="unreduced"), placement.compute)
    has_dropout = max(c.dropout_residual, c.dropout_attention, c.dropout_embedding) > 0
    schedule = learning_rate(config.optim)

    def gradients(
        weights: Any, tokens: jax.Array, segments: jax.Array | None, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Mean loss, and float32 summands of its gradient."""
        n_predictions: Any = tokens.shape[0] * (tokens.shape[1] - 1)
        if segments is not None:
            n_predictions = jnp.sum(within_documents(segments))

        def one(tokens_BT: jax.Array, segments_BT: jax.Array | None, number: Any):
            """The float32 summands, and the losses, of a microbatch."""
            dropout_key = jax.random.fold_in(key, number) if has_dropout else None

            def nll_of(weights: Any) -> jax.Array:
                inputs = None if segments_BT is None else segments_BT[:, :-1]
                logits = forward(c, weights, tokens_BT[:, :-1], dropout_key, at_use, inputs)
                nll_BT = token_nll(logits, tokens_BT[:, 1:])
                if segments_BT is not None:
                    nll_BT *= within_documents(segments_BT)
                return nll_BT.sum(axis=-1)

            # A vector of losses, not their sum: no collective for a scalar inside the loop.
            nll_B, vjp = jax.vjp(nll_of, weights)
            (gradient,) = vjp(jnp.full_like(nll_B, 1 / n_predictions))
            return jax.tree.map(lambda g: g.astype(jnp.float32), gradient), nll_B

        def microbatch(total: Any, numbered: tuple[jax.Array, jax.Array | None, jax.Array]):
            gradient, nll_B = one(*numbered)
            return jax.tree.map(jnp.add, total, gradient), nll_B

        def zeros(w: jax.Array, spec: P) -> jax.Array:
            return jax.reshard(jnp.zeros(w.shape, jnp.float32), spec)

        if microbatches == 1:  # the TPU compiler runs the forward pass of a loop of one twice
            total, nll_B = one(tokens, segments, 0)
            return jnp.sum(nll_B) / n_predictions, total
        split = jax.tree.map(lambda rows: _split(rows, microbatches), (tokens, segments))
        total = jax.tree.map(zeros, weights, summands)
        total, nll_MB = jax.lax.scan(microbatch, total, (*split, jnp.arange(microbatches)))
        return jnp.sum(nll_MB) / n_predictions, total

    def train_step(state: TrainState, tokens: jax.Array, segments: jax.Array | None = None):
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        with jax.named_scope("gather_weights"):
            weights = jax.tree.map(jax.reshard, weights_of(state.params), reduced)
        with jax.named_scope("accumulate_gradients"):
            loss, gradient = gradients(weights, tokens, segments, key)
        with jax.named_scope("reduce_gradients"):
            gradient = jax.tree.map(jax.reshard, gradient, placement.gradients)
        with jax.named_scope("optimizer"):
            master = jax.tree.map(jax.reshard, state.params, placement.optimizer)
            updates, opt_state = tx.update(gradient, state.opt_state, master)
            master = optax.apply_updates(master, updates)
            params = jax.tree.map(jax.reshard, master, placement.stored)
            norm = optax.tree.norm(gradient)
        metrics = {
            "train/loss": loss,
            "train/grad_norm": norm,
            "train/learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def _split(tokens: jax.Array, microbatches: int) -> jax.Array:
    """[B, T + 1] to [m, B / m, T + 1]: row r goes to microbatch r % m, so that no row moves."""
    batch, length = tokens.shape
    spec = P(BATCH_AXES, None, None)
    rows = tokens.reshape(batch // microbatches, microbatches, length, out_sharding=spec)
    return jax.reshard(rows.swapaxes(0, 1), P(None, BATCH_AXES, None))


def within_documents(segments: jax.Array) -> jax.Array:
    """float32 [B, T]: 1 where a target is in the document of its input; segments are [B, T + 1]."""
    return (segments[:, 1:] == segments[:, :-1]).astype(jnp.float32)


def make_forward(config: Config, placement: Placement) -> Callable[..., jax.Array]:
    """`forward(weights, tokens, segments=None)`: logits without dropout, of [B, T] both."""
    at_use = make_at_use(placement, None)
    return lambda weights, tokens_BT, segments_BT=None: forward(
        config.model, weights, tokens_BT, None, at_use, segments_BT
    )


def make_extend(config: Config, placement: Placement) -> Callable[..., Any]:
    """`extend(weights, tokens, positions, cache=None, slot=0, every=False)`: logits, the cache."""
    return partial(extend, config.model, at_use=make_at_use(placement, None))


def make_eval_step(logits_of: Callable[..., jax.Array]):
    """`eval_step(totals, weights, tokens, mask, segments=None)`: totals plus those of the
    predictions in the mask.

    Totals are float32 [2]: summed nats, and their number.
    """

    def eval_step(
        totals: jax.Array,
        weights: Any,
        tokens: jax.Array,
        mask: jax.Array,
        segments: jax.Array | None = None,
    ) -> jax.Array:
        inputs = None if segments is None else segments[:, :-1]
        nll_BT = token_nll(logits_of(weights, tokens[:, :-1], inputs), tokens[:, 1:])
        return totals + jnp.stack([jnp.sum(nll_BT * mask), jnp.sum(mask)])

    return eval_step
