"""Causal multi-head self-attention, softmax in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from gpt_pjit.config import ModelConfig
from gpt_pjit.model.layers import INIT_STD, Projection, contract, dropout
from gpt_pjit.model.positions import alibi_bias


class Attention(nnx.Module):
    def __init__(self, c: ModelConfig, *, rngs: nnx.Rngs):
        sizes = {"D": c.d_model, "C": 3, "H": c.n_heads, "K": c.d_model // c.n_heads}
        residual_std = INIT_STD / (2 * c.n_layers) ** 0.5
        self.config = c
        self.qkv = Projection("ND,DCHK->NCHK", sizes, INIT_STD, c.bias, rngs)
        self.out = Projection("NHK,HKD->ND", sizes, residual_std, c.bias, rngs)

    def __call__(
        self, x_BTD: jax.Array, key: jax.Array | None, segments_BT: jax.Array | None
    ) -> jax.Array:
        qkv_BTCHK = self.qkv(x_BTD)
        q_BTHK, k_BSHK, v_BSHK = (qkv_BTCHK[:, :, i] for i in range(3))
        weights_BHTS = dropout(
            self._weights(q_BTHK, k_BSHK, segments_BT).astype(x_BTD.dtype),
            self.config.dropout_attention,
            key,
        )
        values_BTHK = contract("BHTS,BSHK->BTHK", weights_BHTS, v_BSHK)
        return self.out(values_BTHK)

    def _weights(
        self, q_BTHK: jax.Array, k_BSHK: jax.Array, segments_BT: jax.Array | None
    ) -> jax.Array:
        """Softmax over the keys at or before each query, in its document, float32 [B, H, T, S]."""
        n_heads, head_size = q_BTHK.shape[2:]
        n_keys = k_BSHK.shape[1]
        scores = contract("BTHK,BSHK->BHTS", q_BTHK, k_BSHK, jnp.float32)
        scores = checkpoint_name(scores, "scores") / head_size**0.5
        if self.config.positions == "alibi":
            head_axis = jax.typeof(scores).sharding.spec[1]
            bias_HTS = jax.reshard(alibi_bias(n_heads, n_keys), P(head_axis, None, None))
            scores = scores + bias_HTS[None]
        causal_TS = jnp.arange(n_keys)[None, :] <= jnp.arange(q_BTHK.shape[1])[:, None]
        visible = causal_TS[None, None]
        if segments_BT is not None:
            visible = visible & (segments_BT[:, None, :, None] == segments_BT[:, None, None, :])
        scores = jnp.where(visible, scores, -jnp.inf)
        return checkpoint_name(jax.nn.softmax(scores, axis=-1), "softmax")
