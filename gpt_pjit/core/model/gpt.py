"""The GPT: pre-LN blocks, stacked over layers, between a tied embedding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name, checkpoint_policies
from jax.sharding import PartitionSpec as P

from gpt_pjit.config import ModelConfig
from gpt_pjit.core.model.attention import Attention
from gpt_pjit.core.model.dropout import dropout
from gpt_pjit.core.model.layers import INIT_STD, LayerNorm, Projection, gelu, project
from gpt_pjit.core.model.positions import token_positions

# What costs more to make again than to keep. Not the MLP's: its wide tensors are dear to move.
SAVED = (
    "qkv",
    "values",
    "weights_logsumexp",
    "attended",
    "dropout_kept",
    "norm_mean",
    "norm_square",
)
REMAT_POLICIES = {
    "full": checkpoint_policies.nothing_saveable,
    "selective": checkpoint_policies.save_only_these_names(*SAVED),
}


class MLP(nnx.Module):
    def __init__(self, c: ModelConfig, *, rngs: nnx.Rngs):
        sizes = {"D": c.d_model, "F": c.d_ff}
        residual_std = INIT_STD / (2 * c.n_layers) ** 0.5
        self.approximate = c.activation == "gelu_tanh"
        self.up = Projection("ND,DF->NF", sizes, INIT_STD, c.bias, rngs)
        self.down = Projection("NF,FD->ND", sizes, residual_std, c.bias, rngs)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        with jax.named_scope("mlp"):
            return self.down(gelu(self.up(x_BTD), self.approximate))


class Block(nnx.Module):
    def __init__(self, c: ModelConfig, *, rngs: nnx.Rngs):
        self.dropout_residual = c.dropout_residual
        self.norm_attention = LayerNorm(c.d_model, c.bias)
        self.attention = Attention(c, rngs=rngs)
        self.norm_mlp = LayerNorm(c.d_model, c.bias)
        self.mlp = MLP(c, rngs=rngs)

    def __call__(
        self, x_BTD: jax.Array, key: jax.Array | None, segments_BT: jax.Array | None
    ) -> jax.Array:
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        attended = self.attention(self.norm_attention(x_BTD), keys[0], segments_BT)
        attended = checkpoint_name(attended, "attended")
        x_BTD = x_BTD + dropout(attended, self.dropout_residual, keys[1])
        return x_BTD + dropout(self.mlp(self.norm_mlp(x_BTD)), self.dropout_residual, keys[2])


class Embedding(nnx.Module):
    def __init__(self, rows: int, d_model: int, *, rngs: nnx.Rngs):
        self.embedding = nnx.Param(INIT_STD * jax.random.normal(rngs.params(), (rows, d_model)))

    def __call__(self, ids_BT: jax.Array) -> jax.Array:
        spec = P(*jax.typeof(ids_BT).sharding.spec, None)
        with jax.named_scope("embedding"):
            return self.embedding[...].at[ids_BT].get(out_sharding=spec)


class GPT(nnx.Module):
    """Tokens to logits. Every array of `blocks` has a leading dimension of layers."""

    def __init__(self, c: ModelConfig, sequence_length: int, *, rngs: nnx.Rngs):
        self.config = c
        self.embed = Embedding(c.vocab_size, c.d_model, rngs=rngs)
        if c.positions == "learned":
            self.positions = Embedding(sequence_length, c.d_model, rngs=rngs)
        stack = nnx.vmap(lambda rngs: Block(c, rngs=rngs), in_axes=(0,), out_axes=0)
        self.blocks = nnx.split_rngs(splits=c.n_layers)(stack)(rngs)
        self.norm_final = LayerNorm(c.d_model, c.bias)

    def __call__(
        self,
        tokens_BT: jax.Array,
        key: jax.Array | None = None,
        at_use: Callable[[Any], Any] = lambda block: block,
        segments_BT: jax.Array | None = None,
    ) -> jax.Array:
        """Logits, float32 [B, T, V]; dropout is on where a `key` is given.

        With `segments_BT`, the number of each token's document in its row, documents do not see
        each other and each begins at position 0.

        `at_use` is applied to the parameters of one block just before it runs: the `fsdp` layout
        gathers them there.
        """
        embed_key, block_key = (None, None) if key is None else jax.random.split(key)
        x_BTD = self.embed(tokens_BT)
        if self.config.positions == "learned":
            x_BTD += self.positions(token_positions(tokens_BT, segments_BT))
        x_BTD = dropout(x_BTD, self.config.dropout_embedding, embed_key)
        return self.logits(self.norm_final(self._run_blocks(x_BTD, block_key, at_use, segments_BT)))

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Logits, float32 [B, T, V], of normed hidden states."""
        with jax.named_scope("loss_head"):
            logits_BTV = project("ND,VD->NV", x_BTD, self.embed.embedding[...], jnp.float32)
        return checkpoint_name(logits_BTV, "logits")

    def _run_blocks(self, x_BTD, key, at_use, segments_BT):
        graph, stacked = nnx.split(self.blocks)
        n_layers = self.config.n_layers

        def run(x_BTD, layer):
            params, number = layer
            block = nnx.merge(graph, at_use(params))
            layer_key = None if key is None else jax.random.fold_in(key, number)
            return block(x_BTD, layer_key, segments_BT), None

        if self.config.remat != "none":
            # In a loop nothing can be merged with the forward pass, and the barriers against it
            # would only keep what is made again from fusing with its use.
            run = jax.checkpoint(
                run,
                policy=REMAT_POLICIES[self.config.remat],
                prevent_cse=not self.config.scan_layers,
            )
        unroll = 1 if self.config.scan_layers else n_layers
        layers = (nnx.to_pure_dict(stacked), jnp.arange(n_layers))
        with jax.named_scope("layers"):
            return jax.lax.scan(run, x_BTD, layers, unroll=unroll)[0]
