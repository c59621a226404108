"""Cross-entropy in float32 that keeps a single copy of the logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name


@jax.custom_vjp
def token_nll(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """Negative log-likelihood of each target in nats, float32 [B, T]."""
    return _forward(logits_BTV, targets_BT)[0]


@jax.named_scope("loss_head")
def _forward(logits_BTV, targets_BT):
    lse_BT = checkpoint_name(jax.nn.logsumexp(logits_BTV, axis=-1), "logsumexp")
    target_BT = jnp.sum(jnp.where(_is_target(logits_BTV, targets_BT), logits_BTV, 0), axis=-1)
    return lse_BT - target_BT, (logits_BTV, targets_BT, lse_BT)


@jax.named_scope("loss_head")
def _backward(residuals, cotangent_BT):
    # Softmax minus one-hot, recomputed from the logits: elementwise, so it fuses into the cast to
    # the compute dtype that `contract` makes, and no float32 gradient of the logits is stored.
    logits_BTV, targets_BT, lse_BT = residuals
    softmax = jnp.exp(logits_BTV - lse_BT[..., None])
    gradient = softmax - _is_target(logits_BTV, targets_BT).astype(softmax.dtype)
    return gradient * cotangent_BT[..., None], None


def _is_target(logits_BTV, targets_BT):
    """The one-hot mask by comparison: sharded like the logits, fused, never stored."""
    spec = jax.typeof(logits_BTV).sharding
    vocabulary = jax.lax.broadcasted_iota(jnp.int32, logits_BTV.shape, 2, out_sharding=spec)
    return vocabulary == targets_BT[..., None]


token_nll.defvjp(_forward, _backward)
