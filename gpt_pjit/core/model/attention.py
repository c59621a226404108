"""Causal multi-head self-attention over blocks of queries, softmax in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from gpt_pjit.config import ModelConfig
from gpt_pjit.core.model.dropout import draw_mask, drop
from gpt_pjit.core.model.layers import (
    INIT_STD,
    Norm,
    Projection,
    computed_twice,
    contract,
    linear,
    scaled,
)
from gpt_pjit.core.model.positions import Rotation, alibi_bias, rotate

QUERY_BLOCK = 256

# (q, k, v, key) to the weighted values [H, B, T, K]; heads are before batch everywhere, the order
# in which the projections leave them on a TPU.
Attend = Callable[..., jax.Array]


class Attention(nnx.Module):
    def __init__(self, c: ModelConfig, *, rngs: nnx.Rngs):
        sizes, biases = c.sizes, c.bias != "none"
        residual_std = INIT_STD / (2 * c.n_layers) ** 0.5
        self.grouped, self.qk_norm = sizes["G"] != sizes["H"], c.qk_norm
        # Of the queries: the scores are divided by sqrt(K) in any case.
        self.query_factor = c.attention_scale * sizes["K"] ** 0.5 or 1.0
        if self.grouped:
            self.q = Projection("ND,DHK->NHK", sizes, INIT_STD, biases, rngs)
            self.kv = Projection("ND,DCGK->NCGK", sizes | {"C": 2}, INIT_STD, biases, rngs)
        else:
            self.qkv = Projection("ND,DCHK->NCHK", sizes | {"C": 3}, INIT_STD, biases, rngs)
        if c.qk_norm:
            self.norm_q, self.norm_k = (Norm(c, sizes["K"], bias=False) for _ in range(2))
        self.out = Projection("NHK,HKD->ND", sizes, residual_std, c.bias == "all", rngs)

    def __call__(
        self, x_BTD: jax.Array, attend: Attend, rotation: Rotation | None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """The output [B, T, D], and the keys and values [G, B, T, K] of the tokens.

        `attend(q, k, v)` returns the weighted values, [H, B, T, K].
        """
        with jax.named_scope("attention_projections"):
            if self.grouped:
                q_HBTK = _heads(x_BTD, self.q)
                k_GBTK, v_GBTK = (split_like(q_HBTK, _heads(x_BTD, self.kv, i)) for i in range(2))
            else:
                q_HBTK, k_GBTK, v_GBTK = (_heads(x_BTD, self.qkv, i) for i in range(3))
        if self.qk_norm:
            q_HBTK, k_GBTK = self.norm_q(q_HBTK), self.norm_k(k_GBTK)
        if rotation is not None:
            q_HBTK, k_GBTK = rotate(q_HBTK, rotation), rotate(k_GBTK, rotation)
        values_HBTK = attend(scaled(q_HBTK, self.query_factor), k_GBTK, v_GBTK)
        with jax.named_scope("attention_projections"):
            return self.out(values_HBTK.transpose(1, 2, 0, 3)), (k_GBTK, v_GBTK)


def _heads(x_BTD: jax.Array, projection: Projection, i: int | None = None) -> jax.Array:
    """Queries, keys or values [H, B, T, K], the `i`-th that a joint projection holds.

    One product for each: splitting the result of a joint product copies it, which on a TPU costs
    more than three products.
    """
    at = ... if i is None else i
    bias = None if projection.bias is None else projection.bias[at]
    heads_BTHK = linear("ND,DHK->NHK", x_BTD, projection.kernel[:, at], bias)
    return checkpoint_name(heads_BTHK.transpose(2, 0, 1, 3), "qkv")


def split_like(q_HBTK: jax.Array, x_GBTK: jax.Array) -> jax.Array:
    """Keys or values split over devices as the queries are, each beside its group of queries.

    If the devices do not divide the groups, the fewest copies are made of each that they divide.
    """
    groups, *rest = x_GBTK.shape
    sharding = jax.typeof(q_HBTK).sharding
    parts = q_HBTK.shape[0] // sharding.shard_shape(q_HBTK.shape)[0]
    copies = math.lcm(groups, parts) // groups
    if copies > 1:
        copied = jnp.broadcast_to(x_GBTK[:, None], (groups, copies, *rest))
        x_GBTK = copied.reshape(groups * copies, *rest)
    return jax.reshard(x_GBTK, sharding.spec)


def attend_causally(
    alibi: bool,
    rate: float,
    window: int,
    segments_BS: jax.Array | None,
    q_HBTK: jax.Array,
    k_GBSK: jax.Array,
    v_GBSK: jax.Array,
    key: jax.Array | None,
) -> jax.Array:
    """`attend` with dropout of the attention weights at `rate`, if a `key` is given."""
    q_GRBTK = by_group(q_HBTK, k_GBSK.shape[0])
    masks = None
    if key is not None and rate > 0:
        masks = draw_masks(rate, window, q_GRBTK, k_GBSK, key)
    values_GRBTK = attend(alibi, rate, window, q_GRBTK, k_GBSK, v_GBSK, masks, segments_BS)
    spec = jax.typeof(q_HBTK).sharding.spec
    return values_GRBTK.reshape(q_HBTK.shape, out_sharding=spec)


def by_group(x_HBTK: jax.Array, n_groups: int) -> jax.Array:
    """Heads [G, R, B, T, K]: the R of a group share their keys and values. Without R if it is 1,
    since the TPU compiler makes less of the longer products.
    """
    if n_groups == x_HBTK.shape[0]:
        return x_HBTK
    heads, *rest = jax.typeof(x_HBTK).sharding.spec
    shape = (n_groups, x_HBTK.shape[0] // n_groups, *x_HBTK.shape[1:])
    return x_HBTK.reshape(shape, out_sharding=P(heads, None, *rest))


def contract_groups(equation: str, x: jax.Array, y: jax.Array, dtype: Any = None) -> jax.Array:
    """`contract` of heads as `by_group` gives them; R is in the equation in any case."""
    return contract(equation.replace("R", "") if x.ndim == 4 else equation, x, y, dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def attend(
    alibi: bool,
    rate: float,
    window: int,
    q_GRBTK: jax.Array,
    k_GBSK: jax.Array,
    v_GBSK: jax.Array,
    masks: list[jax.Array] | None,
    segments_BS: jax.Array | None,
) -> jax.Array:
    """The weighted values, [G, R, B, T, K]; query T - 1 is at key S - 1.

    `masks` are those of `draw_masks`; with `segments_BS`, the document of each key, a
    query sees only its own document, and with a `window` only so many keys, its own included. A
    block of queries reads no key that none of them sees: four blocks compute 5/8 of the scores. No
    scores are kept for the backward pass, which recomputes them, and the softmax from their
    logsumexp, as FlashAttention does (Dao et al., 2022). The forward pass makes them twice: for
    their maximum, and for the weights, which stay unnormalised until they are summed.
    """
    return _forward(alibi, rate, window, q_GRBTK, k_GBSK, v_GBSK, masks, segments_BS)[0]


def _forward(alibi, rate, window, q_GRBTK, k_GBSK, v_GBSK, masks, segments_BS):
    values, logsumexps = [], []
    again = computed_twice((q_GRBTK, k_GBSK))
    for i, (queries, keys) in enumerate(_blocks(window, q_GRBTK, k_GBSK)):
        q, k = q_GRBTK[..., queries, :], k_GBSK[..., keys, :]
        scores = _scores(alibi, window, q, k, segments_BS, keys)
        with jax.named_scope("attention_softmax"):
            maximum = jax.lax.optimization_barrier(jnp.max(scores, axis=-1, keepdims=True))
        q, k = again[0][..., queries, :], again[1][..., keys, :]
        scores = _scores(alibi, window, q, k, segments_BS, keys)
        with jax.named_scope("attention_softmax"):
            weights = checkpoint_name(jnp.exp(scores - maximum), "softmax")
            total = jnp.sum(weights, axis=-1, keepdims=True)
            logsumexps.append(maximum + jnp.log(total))
            weights = drop(weights, rate, masks and masks[i]).astype(v_GBSK.dtype)
        with jax.named_scope("attention_values"):
            v = v_GBSK[..., keys, :]
            block = contract_groups("GRBTS,GBSK->GRBTK", weights, v, jnp.float32) / total
            values.append(block.astype(v.dtype))
    with jax.named_scope("attention_values"):
        values_GRBTK = checkpoint_name(_join_blocks(values), "values")
    with jax.named_scope("attention_softmax"):
        logsumexp_GRBT1 = checkpoint_name(jnp.concatenate(logsumexps, axis=-2), "weights_logsumexp")
    residuals = (q_GRBTK, k_GBSK, v_GBSK, masks, segments_BS, values_GRBTK, logsumexp_GRBT1)
    return values_GRBTK, residuals


def _backward(alibi, rate, window, residuals, dvalues_GRBTK):
    q_GRBTK, k_GBSK, v_GBSK, masks, segments_BS, values_GRBTK, logsumexp_GRBT1 = residuals
    dtype, n_keys = q_GRBTK.dtype, k_GBSK.shape[2]
    # The sum over keys of weight times gradient, from the values: no pass over the scores.
    with jax.named_scope("attention_softmax"):
        products = dvalues_GRBTK.astype(jnp.float32) * values_GRBTK.astype(jnp.float32)
        dot_GRBT1 = jnp.sum(products, axis=-1, keepdims=True)
    dq, dk, dv = [], [], []
    for i, (queries, keys) in enumerate(_blocks(window, q_GRBTK, k_GBSK)):
        q, k, v = q_GRBTK[..., queries, :], k_GBSK[..., keys, :], v_GBSK[..., keys, :]
        dvalues = dvalues_GRBTK[..., queries, :]
        scores = _scores(alibi, window, q, k, segments_BS, keys)
        with jax.named_scope("attention_softmax"):
            weights = jnp.exp(scores - logsumexp_GRBT1[..., queries, :])
            dropped = drop(weights, rate, masks and masks[i]).astype(dtype)
        with jax.named_scope("attention_values"):
            dweights = contract_groups("GRBTK,GBSK->GRBTS", dvalues, v, jnp.float32)
        with jax.named_scope("attention_softmax"):
            dweights = drop(dweights, rate, masks and masks[i]) - dot_GRBT1[..., queries, :]
            dscores = (weights * dweights / q.shape[-1] ** 0.5).astype(dtype)
        with jax.named_scope("attention_scores"):
            dq.append(contract_groups("GRBTS,GBSK->GRBTK", dscores, k))
            dk.append((keys, contract_groups("GRBTS,GRBTK->GBSK", dscores, q)))
        with jax.named_scope("attention_values"):
            dv.append((keys, contract_groups("GRBTS,GRBTK->GBSK", dropped, dvalues)))
    with jax.named_scope("attention_scores"):
        dq_GRBTK, dk_GBSK = _join_blocks(dq), _sum_blocks(dk, n_keys)
    with jax.named_scope("attention_values"):
        dv_GBSK = _sum_blocks(dv, n_keys)
    return dq_GRBTK, dk_GBSK, dv_GBSK, None, None


attend.defvjp(_forward, _backward)


def _blocks(window: int, q_GRBTK: jax.Array, k_GBSK: jax.Array) -> Iterator[tuple[slice, slice]]:
    """The queries of each block, and the keys that some of them see."""
    n_queries, n_keys = q_GRBTK.shape[-2], k_GBSK.shape[-2]
    before = n_keys - n_queries
    for start in range(0, n_queries, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, n_queries)
        first = max(0, before + start + 1 - window) if window else 0
        yield slice(start, end), slice(first, before + end)


def _join_blocks(blocks: list[jax.Array]) -> jax.Array:
    """Blocks of queries as one array, each written to its place: a TPU pads and adds the operands
    of a concatenation.
    """
    first, *rest = blocks
    start, n_queries = first.shape[-2], sum(block.shape[-2] for block in blocks)
    room = [(0, 0)] * first.ndim
    room[-2] = (0, n_queries - start)
    whole = jnp.pad(first, room)
    for block in rest:
        whole = jax.lax.dynamic_update_slice_in_dim(whole, block, start, axis=block.ndim - 2)
        start += block.shape[-2]
    return whole


def _sum_blocks(blocks: list[tuple[slice, jax.Array]], n_keys: int) -> jax.Array:
    """The sum of arrays [G, B, .., K] of these keys, in float32."""
    padding = [((0, 0), (0, 0), (keys.start, n_keys - keys.stop), (0, 0)) for keys, _ in blocks]
    wide = [
        jnp.pad(block.astype(jnp.float32), p) for (_, block), p in zip(blocks, padding, strict=True)
    ]
    return sum(wide[1:], wide[0]).astype(blocks[0][1].dtype)


def _scores(
    alibi: bool,
    window: int,
    q_GRBTK: jax.Array,
    k_GBSK: jax.Array,
    segments_BS: jax.Array | None,
    keys: slice,
) -> jax.Array:
    """Scores, float32 [G, R, B, T, S], -inf for keys that a query does not see.

    `keys` is the place of these keys among those of `segments_BS`; the last query is at the last.
    """
    *heads, _, n_queries, head_size = q_GRBTK.shape
    n_keys = k_GBSK.shape[2]
    with jax.named_scope("attention_scores"):
        scores = contract_groups("GRBTK,GBSK->GRBTS", q_GRBTK, k_GBSK, jnp.float32)
        scores = checkpoint_name(scores, "scores") / head_size**0.5
        if alibi:
            bias = alibi_bias(math.prod(heads), n_keys).reshape(*heads, 1, 1, n_keys)
            scores = scores + jax.reshard(bias, P(jax.typeof(scores).sharding.spec[0]))
    key_TS, query_TS = (
        jnp.arange(n_keys)[None],
        (n_keys - n_queries + jnp.arange(n_queries))[:, None],
    )
    visible = key_TS <= query_TS
    if window:
        visible = visible & (key_TS > query_TS - window)
    visible = jnp.expand_dims(visible, range(scores.ndim - 2))
    if segments_BS is not None:
        of_keys = segments_BS[:, keys]
        of_queries = of_keys[:, n_keys - n_queries :]
        same_BTS = of_queries[:, :, None] == of_keys[:, None, :]
        visible = visible & jnp.expand_dims(same_BTS, range(len(heads)))
    with jax.named_scope("attention_scores"):
        return jnp.where(visible, scores, -jnp.inf)


def draw_masks(
    rate: float, window: int, q_GRBTK: jax.Array, k_GBSK: jax.Array, key: jax.Array
) -> list[jax.Array]:
    """For each block of queries, the `draw_mask` of its weights [G, R, B, T, S]."""
    spec = jax.typeof(q_GRBTK).sharding.spec
    masks = []
    for i, (queries, keys) in enumerate(_blocks(window, q_GRBTK, k_GBSK)):
        shape = (*q_GRBTK.shape[:-2], queries.stop - queries.start, keys.stop - keys.start)
        masks.append(draw_mask(jax.random.fold_in(key, i), rate, shape, P(*spec[:-2], None, None)))
    return masks
