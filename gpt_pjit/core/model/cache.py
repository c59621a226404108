"""The forward pass with a memory: new tokens attend to the keys and values of those before them.

Each slot of the cache knows the position of its token, so rows of unequal length share it: a query
sees the slots whose positions are not after its own, and an empty slot is after all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from gpt_pjit.core.model.attention import QUERY_BLOCK, Attention
from gpt_pjit.core.model.gpt import GPT, Block
from gpt_pjit.core.model.layers import contract
from gpt_pjit.core.model.positions import alibi_slopes

EMPTY = 2**30  # the position of a slot without a token


class Cache(NamedTuple):
    """Keys and values, in the compute dtype, and the position of the token in each slot, int32."""

    keys_LBHSK: jax.Array
    values_LBHSK: jax.Array
    positions_BS: jax.Array


def extend(
    gpt: GPT,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    cache: Cache | None,
    slot: jax.Array | int,
    at_use: Callable[[Any], Any],
    every: bool = False,
) -> tuple[jax.Array, Cache]:
    """Logits after the last token of each row, float32 [B, V], and the cache with the new tokens.

    They go to slots `slot` to `slot + T` of `cache`; None begins one of T slots. A row shorter than
    T is filled up with tokens at position `EMPTY`. Learned positions end with their table: a token
    beyond it gets the last one, and is for the caller to avoid. With `every`, the logits are those
    after each new token, [B, T, V].
    """
    x_BTD = gpt.embed(tokens_BT)
    if gpt.config.positions == "learned":
        last = gpt.positions.embedding.shape[0] - 1
        x_BTD += gpt.positions(jnp.minimum(positions_BT, last))
    positions_BS = positions_BT if cache is None else put(cache.positions_BS, positions_BT, slot, 1)
    graph, stacked = nnx.split(gpt.blocks)

    def run(x_BTD: jax.Array, layer: Any):
        params, past = layer
        block = nnx.merge(graph, at_use(params))
        return extend_block(block, x_BTD, positions_BT, past, positions_BS, slot)

    past = None if cache is None else (cache.keys_LBHSK, cache.values_LBHSK)
    unroll = 1 if gpt.config.scan_layers else gpt.config.n_layers
    layers = (nnx.to_pure_dict(stacked), past)
    x_BTD, new = jax.lax.scan(run, x_BTD, layers, unroll=unroll)
    if past is not None:
        # Once for all layers: a scan that gave whole caches back would copy them for each token.
        new = put(past[0], new[0], slot, 3), put(past[1], new[1], slot, 3)
    cache = Cache(new[0], new[1], positions_BS)
    if every:
        return gpt.logits(gpt.norm_final(x_BTD)), cache
    logits_B1V = gpt.logits(gpt.norm_final(last_of_each_row(x_BTD, positions_BT)))
    return logits_B1V[:, 0], cache


def with_slots(cache: Cache, slots: int) -> Cache:
    """`cache` with empty slots added, `slots` in all."""
    more = slots - cache.positions_BS.shape[1]
    heads = ((0, 0), (0, 0), (0, 0), (0, more), (0, 0))
    return Cache(
        jnp.pad(cache.keys_LBHSK, heads),
        jnp.pad(cache.values_LBHSK, heads),
        jnp.pad(cache.positions_BS, ((0, 0), (0, more)), constant_values=EMPTY),
    )


def extend_block(
    block: Block,
    x_BTD: jax.Array,
    positions_BT: jax.Array,
    past: tuple[jax.Array, jax.Array] | None,
    positions_BS: jax.Array,
    slot: jax.Array | int,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """What the block makes of `x_BTD`, and the new keys and values [B, H, T, K]."""
    qkv_BTCHK = block.attention.qkv(block.norm_attention(x_BTD))
    q_BHTK, k_BHSK, v_BHSK = (qkv_BTCHK[:, :, i].swapaxes(1, 2) for i in range(3))
    new = k_BHSK, v_BHSK
    if past is not None:
        k_BHSK, v_BHSK = put(past[0], k_BHSK, slot, 2), put(past[1], v_BHSK, slot, 2)
    values_BHTK = attend(block.attention, q_BHTK, k_BHSK, v_BHSK, positions_BT, positions_BS)
    x_BTD = x_BTD + block.attention.out(values_BHTK.swapaxes(1, 2))
    return x_BTD + block.mlp(block.norm_mlp(x_BTD)), new


def attend(
    attention: Attention,
    q_BHTK: jax.Array,
    k_BHSK: jax.Array,
    v_BHSK: jax.Array,
    positions_BT: jax.Array,
    positions_BS: jax.Array,
) -> jax.Array:
    """The values [B, H, T, K] that the queries gather, one block of them after the other.

    So the scores of only one block are in memory. In a loop: of blocks that do not wait for each
    other, XLA on CPU keeps all.
    """

    def attend_block(block: tuple[jax.Array, jax.Array]) -> jax.Array:
        weights_BHTS = weights(attention, block[0], k_BHSK, block[1], positions_BS)
        return contract("BHTS,BHSK->BHTK", weights_BHTS.astype(v_BHSK.dtype), v_BHSK)

    batch, n_heads, n_queries, head_size = q_BHTK.shape
    if n_queries <= QUERY_BLOCK:
        return attend_block((q_BHTK, positions_BT))
    more = -n_queries % QUERY_BLOCK
    q_BHTK = jnp.pad(q_BHTK, ((0, 0), (0, 0), (0, more), (0, 0)))
    positions_BT = jnp.pad(positions_BT, ((0, 0), (0, more)))
    q_BHNTK = q_BHTK.reshape(batch, n_heads, -1, QUERY_BLOCK, head_size)
    positions_BNT = positions_BT.reshape(batch, -1, QUERY_BLOCK)
    blocks = jnp.moveaxis(q_BHNTK, 2, 0), jnp.moveaxis(positions_BNT, 1, 0)
    values_BHNTK = jnp.moveaxis(jax.lax.map(attend_block, blocks), 0, 2)
    return values_BHNTK.reshape(batch, n_heads, -1, head_size)[:, :, :n_queries]


def weights(
    attention: Attention,
    q_BHTK: jax.Array,
    k_BHSK: jax.Array,
    positions_BT: jax.Array,
    positions_BS: jax.Array,
) -> jax.Array:
    """Softmax over the slots whose position is at or before each query's, float32 [B, H, T, S].

    The bias is that of `alibi_bias`, the slope times the key's position, to the bit.
    """
    _, n_heads, _, head_size = q_BHTK.shape
    scores = contract("BHTK,BHSK->BHTS", q_BHTK, k_BHSK, jnp.float32)
    scores = checkpoint_name(scores, "scores") / head_size**0.5
    if attention.config.positions == "alibi":
        head_axis = jax.typeof(scores).sharding.spec[1]
        slopes = jax.reshard(alibi_slopes(n_heads)[None, :, None, None], P(None, head_axis))
        scores = scores + slopes * positions_BS.astype(jnp.float32)[:, None, None, :]
    visible_BTS = positions_BS[:, None, :] <= positions_BT[:, :, None]
    scores = jnp.where(visible_BTS[:, None], scores, -jnp.inf)
    return checkpoint_name(jax.nn.softmax(scores, axis=-1), "softmax")


def put(old: jax.Array, new: jax.Array, slot: jax.Array | int, dimension: int) -> jax.Array:
    """`old` with `new` from `slot` on along one dimension."""
    return jax.lax.dynamic_update_slice_in_dim(old, new, slot, dimension)


def last_of_each_row(x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
    """The vector of each row's last token that is not at position `EMPTY`, [B, 1, D]."""
    n_tokens = positions_BT.shape[1]
    last_B1 = jnp.sum(positions_BT < EMPTY, axis=1, keepdims=True) - 1
    is_last_BT = jnp.arange(n_tokens)[None] == last_B1
    # A sum of one vector and zeros, exact in any dtype; a gather would need its sharding spelt out.
    return jnp.sum(jnp.where(is_last_BT[:, :, None], x_BTD, 0), axis=1, keepdims=True)
