"""Logits and cross-entropy in float32, with a backward pass that keeps one copy of the logits."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero

from gpt_pjit.core.model.layers import project

HEAD = "ND,VD->NV"


@jax.named_scope("loss_head")
def logits(x_BTD: jax.Array, head_VD: jax.Array, cap: float = 0.0) -> jax.Array:
    """Logits, float32 [B, T, V], held within +-`cap` by tanh unless that is 0."""
    logits_BTV = project(HEAD, x_BTD, head_VD, jnp.float32)
    if cap:
        logits_BTV = cap * jnp.tanh(logits_BTV / cap)
    return checkpoint_name(logits_BTV, "logits")


def token_nll(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """Negative log-likelihood of each target in nats, float32 [B, T]."""
    return _nll_and_logsumexp(logits_BTV, targets_BT)[0]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def head_losses(
    cap: float, x_BTD: jax.Array, head_VD: jax.Array, targets_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`token_nll` of the `logits` of a head, and their logsumexp, float32 [B, T].

    The gradient of the logits, softmax minus one-hot, is made from them twice, as an operand of
    each backward product: there it costs a TPU nothing, while to write it and read it twice takes
    as long as half a product.
    """
    return _nll_and_logsumexp(logits(x_BTD, head_VD, cap), targets_BT)


def _forward(cap, x, head, targets):
    logits_BTV = logits(x.value, head.value, cap)
    nll_BT, lse_BT = _nll_and_logsumexp(logits_BTV, targets.value)
    return (nll_BT, lse_BT), (x.value, head.value, targets.value, logits_BTV, lse_BT)


@jax.named_scope("loss_head")
def _backward(cap, residuals, cotangents):
    x_BTD, head_VD, targets_BT, logits_BTV, lse_BT = residuals

    def gradient(logits_BTV: jax.Array) -> jax.Array:
        softmax = jnp.exp(logits_BTV - lse_BT[..., None])
        gradient = softmax - _is_target(logits_BTV, targets_BT).astype(softmax.dtype)
        gradient = gradient * cotangents[0][..., None]
        if not isinstance(cotangents[1], SymbolicZero):  # the logsumexp is used
            gradient += softmax * cotangents[1][..., None]
        return gradient * (1 - (logits_BTV / cap) ** 2) if cap else gradient

    # Behind the barrier they are other logits, so the two gradients stay two. A CPU, which cannot
    # fuse them into products, makes one.
    again = jax.lax.platform_dependent(
        logits_BTV, cpu=lambda x: x, default=jax.lax.optimization_barrier
    )
    _, vjp = jax.vjp(lambda x, head: project(HEAD, x, head, jnp.float32), x_BTD, head_VD)
    return vjp(gradient(logits_BTV))[0], vjp(gradient(again))[1], None


head_losses.defvjp(_forward, _backward, symbolic_zeros=True)


@jax.named_scope("loss_head")
def _nll_and_logsumexp(logits_BTV: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    lse_BT = checkpoint_name(jax.nn.logsumexp(logits_BTV, axis=-1), "logsumexp")
    target_BT = jnp.sum(jnp.where(_is_target(logits_BTV, targets_BT), logits_BTV, 0), axis=-1)
    return lse_BT - target_BT, lse_BT


def _is_target(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """The one-hot mask by comparison: sharded like the logits, fused, never stored."""
    spec = jax.typeof(logits_BTV).sharding
    vocabulary = jax.lax.broadcasted_iota(jnp.int32, logits_BTV.shape, 2, out_sharding=spec)
    return vocabulary == targets_BT[..., None]
