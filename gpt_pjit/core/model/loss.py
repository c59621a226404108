"""Cross-entropy in float32 that keeps a single copy of the logits."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero


def token_nll(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """Negative log-likelihood of each target in nats, float32 [B, T]."""
    return nll_and_logsumexp(logits_BTV, targets_BT)[0]


@jax.custom_vjp
def nll_and_logsumexp(logits_BTV: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`token_nll`, and the logsumexp of the logits, float32 [B, T]."""
    with jax.named_scope("loss_head"):
        lse_BT = checkpoint_name(jax.nn.logsumexp(logits_BTV, axis=-1), "logsumexp")
        target_BT = jnp.sum(jnp.where(_is_target(logits_BTV, targets_BT), logits_BTV, 0), axis=-1)
        return lse_BT - target_BT, lse_BT


def _forward(logits_BTV, targets_BT):
    nll_BT, lse_BT = nll_and_logsumexp(logits_BTV.value, targets_BT.value)
    return (nll_BT, lse_BT), (logits_BTV.value, targets_BT.value, lse_BT)


@jax.named_scope("loss_head")
def _backward(residuals, cotangents):
    # Softmax minus one-hot, recomputed from the logits: elementwise, so it fuses into the cast to
    # the compute dtype that `contract` makes, and no float32 gradient of the logits is stored.
    logits_BTV, targets_BT, lse_BT = residuals
    softmax = jnp.exp(logits_BTV - lse_BT[..., None])
    gradient = softmax - _is_target(logits_BTV, targets_BT).astype(softmax.dtype)
    gradient = gradient * cotangents[0][..., None]
    if not isinstance(cotangents[1], SymbolicZero):  # the logsumexp is used
        gradient += softmax * cotangents[1][..., None]
    return gradient, None


def _is_target(logits_BTV, targets_BT):
    """The one-hot mask by comparison: sharded like the logits, fused, never stored."""
    spec = jax.typeof(logits_BTV).sharding
    vocabulary = jax.lax.broadcasted_iota(jnp.int32, logits_BTV.shape, 2, out_sharding=spec)
    return vocabulary == targets_BT[..., None]


nll_and_logsumexp.defvjp(_forward, _backward, symbolic_zeros=True)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def softcap(limit: float, x: jax.Array) -> jax.Array:
    """`limit * tanh(x / limit)`; the backward pass keeps the result alone."""
    return limit * jnp.tanh(x / limit)


def _softcap_forward(limit, x):
    capped = softcap(limit, x)
    return capped, capped


def _softcap_backward(limit, capped, cotangent):
    return (cotangent * (1 - (capped / limit) ** 2),)


softcap.defvjp(_softcap_forward, _softcap_backward)
