"""Logits and cross-entropy in float32, with a backward pass that keeps one copy of the logits.

N is the tokens of B and T.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero

from gpt_pjit.core.model.layers import computed_twice, merge_tokens, project_tokens, split_tokens

HEAD = "ND,VD->NV"
SAFE = 64.0  # the exponentials of so many nats, and sums of 1e10 of them, are float32 numbers


def logits(x_BTD: jax.Array, head_VD: jax.Array, cap: float = 0.0) -> jax.Array:
    """Logits, float32 [B, T, V], held within +-`cap` by tanh unless that is 0."""
    return split_tokens(_logits(cap, merge_tokens(x_BTD), head_VD), x_BTD.shape[:2])


def token_nll(logits: jax.Array, targets: jax.Array, cap: float = 0.0) -> jax.Array:
    """Negative log-likelihood of each target in nats: float32 [B, T] of `logits` [B, T, V], which
    have this `cap`.
    """
    return _nll_and_logsumexp(cap, logits, targets)[0]


def head_losses(
    cap: float, x_BTD: jax.Array, head_VD: jax.Array, targets_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`token_nll` of the `logits` of a head, and their logsumexp, float32 [B, T]."""
    merged = merge_tokens(x_BTD), head_VD, merge_tokens(targets_BT)
    nll_N, lse_N = _losses(cap, *merged)
    return split_tokens(nll_N, x_BTD.shape[:2]), split_tokens(lse_N, x_BTD.shape[:2])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _losses(
    cap: float, x_ND: jax.Array, head_VD: jax.Array, targets_N: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradient of the logits, softmax minus one-hot, is made from them twice, as an operand of
    each backward product: on a TPU it costs nothing there, while to write it and read it twice
    takes as long as half a product.
    """
    return _nll_and_logsumexp(cap, _logits(cap, x_ND, head_VD), targets_N)


def _forward(cap, x, head, targets):
    logits_NV = _logits(cap, x.value, head.value)
    nll_N, lse_N = _nll_and_logsumexp(cap, logits_NV, targets.value)
    return (nll_N, lse_N), (x.value, head.value, targets.value, logits_NV, lse_N)


@jax.named_scope("loss_head")
def _backward(cap, residuals, cotangents):
    x_ND, head_VD, targets_N, logits_NV, lse_N = residuals

    def gradient(logits_NV: jax.Array) -> jax.Array:
        softmax = jnp.exp(logits_NV - lse_N[:, None])
        gradient = softmax - _is_target(logits_NV, targets_N).astype(softmax.dtype)
        gradient = gradient * cotangents[0][:, None]
        if not isinstance(cotangents[1], SymbolicZero):  # the logsumexp is used
            gradient += softmax * cotangents[1][:, None]
        return gradient * (1 - (logits_NV / cap) ** 2) if cap else gradient

    again = computed_twice(logits_NV)
    _, vjp = jax.vjp(lambda x, head: project_tokens(HEAD, x, head, jnp.float32), x_ND, head_VD)
    return vjp(gradient(logits_NV))[0], vjp(gradient(again))[1], None


_losses.defvjp(_forward, _backward, symbolic_zeros=True)


@jax.named_scope("loss_head")
def _logits(cap: float, x_ND: jax.Array, head_VD: jax.Array) -> jax.Array:
    logits_NV = project_tokens(HEAD, x_ND, head_VD, jnp.float32)
    if cap:
        logits_NV = cap * jnp.tanh(logits_NV / cap)
    return checkpoint_name(logits_NV, "logits")


@jax.named_scope("loss_head")
def _nll_and_logsumexp(
    cap: float, logits: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    if 0 < cap <= SAFE:  # made with the logits: to subtract their maximum takes another pass
        lse = jnp.log(jnp.sum(jnp.exp(logits), axis=-1))
    else:
        lse = jax.nn.logsumexp(logits, axis=-1)
    lse = checkpoint_name(lse, "logsumexp")
    of_target = jnp.sum(jnp.where(_is_target(logits, targets), logits, 0), axis=-1)
    return lse - of_target, lse


def _is_target(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The one-hot mask by comparison: sharded like the logits, fused, never stored."""
    spec, last = jax.typeof(logits).sharding, logits.ndim - 1
    vocabulary = jax.lax.broadcasted_iota(jnp.int32, logits.shape, last, out_sharding=spec)
    return vocabulary == targets[..., None]
