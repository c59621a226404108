"""The forward pass with a cache: new tokens attend to the keys and values of earlier ones.

Each slot stores the position of its token, so rows of unequal length can share a cache. A query
sees the slots whose positions are not after its own; an empty slot is after every query.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from gpt_pjit.core.model import (
    QUERY_BLOCK,
    KeysAndValues,
    Model,
    alibi_slopes,
    by_group,
    contract_groups,
    heads_of,
    open_block,
    open_ends,
    rotation,
    scan_layers,
)

EMPTY = 2**30  # the position of a slot without a token


class Cache(NamedTuple):
    """Keys and values, in the compute dtype, and the position of the token in each slot, int32."""

    keys_LGBSK: jax.Array
    values_LGBSK: jax.Array
    positions_BS: jax.Array


def extend(
    model: Model,
    weights: Any,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    cache: Cache | None = None,
    slot: jax.Array | int = 0,
    every: bool = False,
) -> tuple[jax.Array, Cache]:
    """Logits after the last token of each row, float32 [B, V], and the cache with the new tokens.

    They fill `cache` from `slot`; None makes a cache of T slots. Rows shorter than T are padded
    with tokens at position `EMPTY`. A token beyond the learned positions gets the last one, which
    the caller should avoid. With `every`, there are logits after each new token, [B, T, V].
    """
    c = model.config
    ends = open_ends(c, weights)
    within_BT = positions_BT
    if c.positions == "learned":
        within_BT = jnp.minimum(positions_BT, ends.positions.embedding.shape[0] - 1)
    x_BTD = ends.enter(tokens_BT, within_BT)
    angles = rotation(c, positions_BT)
    positions_BS = positions_BT if cache is None else put(cache.positions_BS, positions_BT, slot, 1)

    def run(x_BTD: jax.Array, layer: tuple[Any, KeysAndValues | None], window: int) -> Any:
        block, past = layer

        def attend(heads, key):  # no key: no dropout
            q_HBTK, k_GBSK, v_GBSK = heads.ready()
            new = k_GBSK, v_GBSK
            if past is not None:
                k_GBSK, v_GBSK = put(past[0], k_GBSK, slot, 2), put(past[1], v_GBSK, slot, 2)
            where = positions_BT, positions_BS
            values = attend_slots(c.positions == "alibi", window, q_HBTK, k_GBSK, v_GBSK, *where)
            return values, new

        return open_block(c, model.gather_layer(block))(x_BTD, attend, angles)

    past = None if cache is None else (cache.keys_LGBSK, cache.values_LGBSK)
    x_BTD, new = scan_layers(c, run, x_BTD, (weights["blocks"], past))
    if past is not None:
        # Once for all layers: a scan that returned whole caches would copy them at each token.
        new = put(past[0], new[0], slot, 3), put(past[1], new[1], slot, 3)
    cache = Cache(new[0], new[1], positions_BS)
    if every:
        return ends.logits(x_BTD), cache
    return ends.logits(last_of_each_row(x_BTD, positions_BT))[:, 0], cache


def with_slots(cache: Cache, slots: int) -> Cache:
    """`cache` with empty slots added, to `slots` in all."""
    more = slots - cache.positions_BS.shape[1]
    heads = ((0, 0), (0, 0), (0, 0), (0, more), (0, 0))
    return Cache(
        jnp.pad(cache.keys_LGBSK, heads),
        jnp.pad(cache.values_LGBSK, heads),
        jnp.pad(cache.positions_BS, ((0, 0), (0, more)), constant_values=EMPTY),
    )


def attend_slots(
    alibi: bool,
    window: int,
    q_HBTK: jax.Array,
    k_GBSK: jax.Array,
    v_GBSK: jax.Array,
    positions_BT: jax.Array,
    positions_BS: jax.Array,
) -> jax.Array:
    """The weighted values, [H, B, T, K], of the slots that are visible from the queries' positions.

    Blocks of queries run in a loop, so only the scores of one are in memory. Without the loop, XLA
    on CPU keeps the scores of all blocks.
    """

    def attend_block(block: tuple[jax.Array, jax.Array]) -> jax.Array:
        q_HBTK, positions_BT = block
        q_GRBTK = by_group(q_HBTK, k_GBSK.shape[0])
        weights = attention_weights(alibi, window, q_GRBTK, k_GBSK, positions_BT, positions_BS)
        with jax.named_scope("attention_values"):
            weights = weights.astype(v_GBSK.dtype)
            return heads_of(contract_groups("GRBTS,GBSK->GRBTK", weights, v_GBSK))

    n_heads, batch, n_queries, head_size = q_HBTK.shape
    if n_queries <= QUERY_BLOCK:
        return attend_block((q_HBTK, positions_BT))
    more = -n_queries % QUERY_BLOCK
    q_HBTK = jnp.pad(q_HBTK, ((0, 0), (0, 0), (0, more), (0, 0)))
    positions_BT = jnp.pad(positions_BT, ((0, 0), (0, more)))
    q_HBNTK = q_HBTK.reshape(n_heads, batch, -1, QUERY_BLOCK, head_size)
    positions_BNT = positions_BT.reshape(batch, -1, QUERY_BLOCK)
    blocks = jnp.moveaxis(q_HBNTK, 2, 0), jnp.moveaxis(positions_BNT, 1, 0)
    values_HBNTK = jnp.moveaxis(jax.lax.map(attend_block, blocks), 0, 2)
    return values_HBNTK.reshape(n_heads, batch, -1, head_size)[:, :, :n_queries]


def attention_weights(
    alibi: bool,
    window: int,
    q_GRBTK: jax.Array,
    k_GBSK: jax.Array,
    positions_BT: jax.Array,
    positions_BS: jax.Array,
) -> jax.Array:
    """Softmax over the slots whose position is at or before each query's, and within the window if
    there is one, float32 [G, R, B, T, S].

    The bias equals `alibi_bias`, the slope times the key's position, to the bit.
    """
    *heads, _, _, head_size = q_GRBTK.shape
    with jax.named_scope("attention_scores"):
        scores = contract_groups("GRBTK,GBSK->GRBTS", q_GRBTK, k_GBSK, jnp.float32)
        scores = checkpoint_name(scores, "scores") / head_size**0.5
    with jax.named_scope("attention_softmax"):
        if alibi:
            slopes = alibi_slopes(math.prod(heads)).reshape(*heads, 1, 1, 1)
            slopes = jax.reshard(slopes, P(jax.typeof(scores).sharding.spec[0]))
            keys_BS = positions_BS.astype(jnp.float32)
            scores = scores + slopes * jnp.expand_dims(keys_BS[:, None], range(len(heads)))
        visible_BTS = positions_BS[:, None, :] <= positions_BT[:, :, None]
        if window:
            visible_BTS &= positions_BS[:, None, :] > positions_BT[:, :, None] - window
        scores = jnp.where(jnp.expand_dims(visible_BTS, range(len(heads))), scores, -jnp.inf)
        return checkpoint_name(jax.nn.softmax(scores, axis=-1), "softmax")


def put(old: jax.Array, new: jax.Array, slot: jax.Array | int, dimension: int) -> jax.Array:
    """`old` with `new` written at `slot` along one dimension."""
    return jax.lax.dynamic_update_slice_in_dim(old, new, slot, dimension)


def last_of_each_row(x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
    """The vector of each row's last token that is not padding, [B, 1, D]."""
    n_tokens = positions_BT.shape[1]
    last_B1 = jnp.sum(positions_BT < EMPTY, axis=1, keepdims=True) - 1
    is_last_BT = jnp.arange(n_tokens)[None] == last_B1
    # A sum of one vector and zeros, exact in any dtype; a gather would need its sharding spelt out.
    return jnp.sum(jnp.where(is_last_BT[:, :, None], x_BTD, 0), axis=1, keepdims=True)
