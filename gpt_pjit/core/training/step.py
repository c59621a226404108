"""The training step: gather once, accumulate unreduced, reduce once, update in place."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from gpt_pjit.config import Config, OptimConfig
from gpt_pjit.core.model import Model
from gpt_pjit.core.sharding import BATCH_AXES, over_batch_axes
from gpt_pjit.core.training.schedule import learning_rate

TOKENS = P(BATCH_AXES, None)  # [B, T + 1]
OfLosses = Callable[[jax.Array], jax.Array]  # of [B, T]


class TrainState(NamedTuple):
    """Everything that a checkpoint holds; `step` counts the updates made.

    Leaves are arrays, or descriptions of them: shapes, specs.
    """

    step: Any
    params: Any
    opt_state: Any


def make_train_step(
    config: Config, model: Model, tx: optax.GradientTransformation
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """`train_step(state, tokens, segments=None)`; returns the new state and metrics.

    A step whose loss or gradient norm is NaN or infinite changes neither parameters nor moments.

    Tokens are int32 [B, T + 1]. So are `segments`, the document number of each token, given if
    documents must not see each other.
    """
    schedule = learning_rate(config.optim)

    def train_step(state: TrainState, tokens: jax.Array, segments: jax.Array | None = None):
        loss, gradient = gradient_of(config, model, state, tokens, segments)
        with jax.named_scope("optimizer"):
            norm = optax.tree.norm(gradient)
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        params, opt_state = update(model, tx, state, gradient, good)
        metrics = {
            "train/loss": loss,
            "train/grad_norm": norm,
            "train/learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def gradient_of(
    config: Config,
    model: Model,
    state: TrainState,
    tokens: jax.Array,
    segments: jax.Array | None,
    of_losses: OfLosses = lambda nll_BT: nll_BT,
) -> tuple[jax.Array, Any]:
    """The mean over predictions of `of_losses`, the losses as they are, and the gradient."""
    c = config.model
    has_dropout = max(c.dropout_residual, c.dropout_attention, c.dropout_embedding) > 0
    key = jax.random.fold_in(jax.random.key(config.seed), state.step) if has_dropout else None
    weights = gather(model, state.params)
    mean, summands = accumulate(model, weights, tokens, segments, key, config.optim, of_losses)
    return mean, reduce(model, summands)


def gather(model: Model, params: Any) -> Any:
    """The weights of the passes, in the compute dtype: in `zero`, the one gather of a step.

    In `fsdp` the layers stay split until `Model.gather_layer`; in `ddp` and `zero1` nothing moves.
    A weight that is `reduced` over the batch axes has a gradient that is `unreduced` over them.
    """
    specs = _over_batch_axes(model, "reduced")
    return jax.tree.map(jax.reshard, model.gather_weights(params), specs)


def accumulate(
    model: Model,
    weights: Any,
    tokens: jax.Array,
    segments: jax.Array | None,
    key: jax.Array | None,
    c: OptimConfig,
    of_losses: OfLosses,
) -> tuple[jax.Array, Any]:
    """The mean of `of_losses`, and each device's float32 summand of the gradient of the loss, over
    all microbatches.
    """
    n_predictions: Any = tokens.shape[0] * (tokens.shape[1] - 1)
    if segments is not None:  # a batch may hold nothing to predict
        n_predictions = jnp.maximum(jnp.sum(within_documents(segments)), 1)

    def one(tokens: jax.Array, segments: jax.Array | None, number: Any) -> tuple[jax.Array, Any]:
        dropout_key = None if key is None else jax.random.fold_in(key, number)
        return microbatch(
            model, weights, tokens, segments, dropout_key, n_predictions, c.z_loss, of_losses
        )

    def add(total: Any, numbered: tuple[jax.Array, jax.Array | None, jax.Array]):
        nll_B, summands = one(*numbered)
        return jax.tree.map(jnp.add, total, summands), nll_B

    def zeros(w: jax.Array, spec: P) -> jax.Array:
        return jax.reshard(jnp.zeros(w.shape, jnp.float32), spec)

    if c.microbatches == 1:  # the TPU compiler runs the forward pass of a loop of one step twice
        nll_B, summands = one(tokens, segments, 0)
        return jnp.sum(nll_B) / n_predictions, summands
    with jax.named_scope("accumulate_gradients"):
        split = jax.tree.map(lambda rows: split_rows(rows, c.microbatches), (tokens, segments))
        total = jax.tree.map(zeros, weights, _over_batch_axes(model, "unreduced"))
        total, nll_MB = jax.lax.scan(add, total, (*split, jnp.arange(c.microbatches)))
        return jnp.sum(nll_MB) / n_predictions, total


def microbatch(
    model: Model,
    weights: Any,
    tokens_BT: jax.Array,
    segments_BT: jax.Array | None,
    key: jax.Array | None,
    n_predictions: Any,
    z_loss: float,
    of_losses: OfLosses,
) -> tuple[jax.Array, Any]:
    """`of_losses` of one microbatch, summed by row, float32 [B], and float32 summands of the
    gradient of the sum of its losses over `n_predictions`.

    The gradient is also that of `z_loss`, which keeps logits from drifting (PaLM, Chowdhery et al.,
    2022); the losses leave it out, so that they compare with those of validation.
    """

    def losses_of(weights: Any) -> tuple[jax.Array, jax.Array]:
        inputs_BT, targets_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
        of_inputs = None if segments_BT is None else segments_BT[:, :-1]
        nll_BT, lse_BT = model.losses(weights, inputs_BT, targets_BT, key, of_inputs)
        loss_BT = nll_BT + z_loss * lse_BT**2 if z_loss else nll_BT
        if segments_BT is not None:
            inside_BT = within_documents(segments_BT)
            nll_BT, loss_BT = nll_BT * inside_BT, loss_BT * inside_BT
        return loss_BT.sum(axis=-1), of_losses(nll_BT).sum(axis=-1)

    # A vector of losses, not their sum: no collective for a scalar inside the loop.
    _, vjp, nll_B = jax.vjp(losses_of, weights, has_aux=True)
    (gradient,) = vjp(jnp.full_like(nll_B, 1 / n_predictions))
    with jax.named_scope("accumulate_gradients"):
        return nll_B, jax.tree.map(lambda g: g.astype(jnp.float32), gradient)


def reduce(model: Model, summands: Any) -> Any:
    """The gradient, as the layout splits it: the one reduction of a step, in float32.

    But in `fsdp`, those of a layer are reduced where its weights are gathered.
    """
    with jax.named_scope("reduce_gradients"):
        return jax.tree.map(jax.reshard, summands, model.placement.gradients)


def update(
    model: Model,
    tx: optax.GradientTransformation,
    state: TrainState,
    gradient: Any,
    good: jax.Array,
) -> tuple[Any, Any]:
    """New parameters, as stored, and optimizer state, computed where that state lives.

    Unless the step is `good`, nothing changes but the counters, which are integers.
    """

    def if_good(new: jax.Array, old: jax.Array) -> jax.Array:
        counts = jnp.issubdtype(new.dtype, jnp.integer)
        return new if counts else jnp.where(good, new, old)

    with jax.named_scope("optimizer"):
        master, updates, opt_state = updates_of(model, tx, state, gradient)
        master = jax.tree.map(if_good, optax.apply_updates(master, updates), master)
        opt_state = jax.tree.map(if_good, opt_state, state.opt_state)
        return jax.tree.map(jax.reshard, master, model.placement.stored), opt_state


def updates_of(
    model: Model, tx: optax.GradientTransformation, state: TrainState, gradient: Any
) -> tuple[Any, Any, Any]:
    """The parameters where the optimizer works, what it adds to them, and its new state."""
    master = jax.tree.map(jax.reshard, state.params, model.placement.optimizer)
    return master, *tx.update(gradient, state.opt_state, master)


def within_documents(segments: jax.Array) -> jax.Array:
    """float32 [B, T]: 1 where a target is in the document of its input; segments are [B, T + 1]."""
    return (segments[:, 1:] == segments[:, :-1]).astype(jnp.float32)


def _over_batch_axes(model: Model, kind: str) -> Any:
    return jax.tree.map(lambda spec: over_batch_axes(spec, kind=kind), model.placement.compute)


def split_rows(tokens: jax.Array, microbatches: int) -> jax.Array:
    """[B, T + 1] to [m, B / m, T + 1]: row r goes to microbatch r % m, so no row moves."""
    batch, length = tokens.shape
    spec = P(BATCH_AXES, None, None)
    rows = tokens.reshape(batch // microbatches, microbatches, length, out_sharding=spec)
    return jax.reshard(rows.swapaxes(0, 1), P(None, BATCH_AXES, None))
