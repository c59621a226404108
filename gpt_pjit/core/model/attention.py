"""Causal multi-head self-attention over blocks of queries, softmax in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from gpt_pjit.config import ModelConfig
from gpt_pjit.core.model.dropout import draw_kept, drop
from gpt_pjit.core.model.layers import INIT_STD, Projection, contract, linear
from gpt_pjit.core.model.positions import alibi_bias

QUERY_BLOCK = 256

# (q, k, v, key) to the weighted values [H, B, T, K]; heads are before batch everywhere, the order
# in which the projections leave them on a TPU.
Attend = Callable[..., jax.Array]


class Attention(nnx.Module):
    def __init__(self, c: ModelConfig, *, rngs: nnx.Rngs):
        sizes = {"D": c.d_model, "C": 3, "H": c.n_heads, "K": c.d_model // c.n_heads}
        residual_std = INIT_STD / (2 * c.n_layers) ** 0.5
        self.qkv = Projection("ND,DCHK->NCHK", sizes, INIT_STD, c.bias, rngs)
        self.out = Projection("NHK,HKD->ND", sizes, residual_std, c.bias, rngs)

    def __call__(
        self, x_BTD: jax.Array, attend: Callable[..., jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """The output [B, T, D], and the keys and values [H, B, T, K] of the tokens.

        `attend(q, k, v)` returns the weighted values, [H, B, T, K].
        """
        with jax.named_scope("attention_projections"):
            q_HBTK, k_HBTK, v_HBTK = (self._heads(x_BTD, i) for i in range(3))
        values_HBTK = attend(q_HBTK, k_HBTK, v_HBTK)
        with jax.named_scope("attention_projections"):
            return self.out(values_HBTK.transpose(1, 2, 0, 3)), (k_HBTK, v_HBTK)

    def _heads(self, x_BTD: jax.Array, i: int) -> jax.Array:
        """Queries, keys or values [H, B, T, K].

        One product for each: splitting the result of a joint product copies it, which on a TPU
        costs more than three products.
        """
        bias = None if self.qkv.bias is None else self.qkv.bias[i]
        heads_BTHK = linear("ND,DHK->NHK", x_BTD, self.qkv.kernel[:, i], bias)
        return checkpoint_name(heads_BTHK.transpose(2, 0, 1, 3), "qkv")


def attend_causally(
    alibi: bool,
    rate: float,
    segments_BS: jax.Array | None,
    q_HBTK: jax.Array,
    k_HBSK: jax.Array,
    v_HBSK: jax.Array,
    key: jax.Array | None,
) -> jax.Array:
    """`attend` with dropout of the attention weights at `rate`, if a `key` is given."""
    kept = None if key is None or rate == 0 else draw_weights_kept(rate, q_HBTK, k_HBSK, key)
    return attend(alibi, rate, q_HBTK, k_HBSK, v_HBSK, kept, segments_BS)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend(
    alibi: bool,
    rate: float,
    q_HBTK: jax.Array,
    k_HBSK: jax.Array,
    v_HBSK: jax.Array,
    kept: list[jax.Array] | None,
    segments_BS: jax.Array | None,
) -> jax.Array:
    """The weighted values, [H, B, T, K]; query T - 1 is at key S - 1.

    `kept` are the masks of `draw_weights_kept`; with `segments_BS`, the document of each key, a
    query sees only its own document. A block of queries reads no key after its last query: four
    blocks compute 5/8 of the scores. No scores are kept for the backward pass, which recomputes
    them, and the softmax from their logsumexp, as FlashAttention does (Dao et al., 2022).
    """
    return _forward(alibi, rate, q_HBTK, k_HBSK, v_HBSK, kept, segments_BS)[0]


def _forward(alibi, rate, q_HBTK, k_HBSK, v_HBSK, kept, segments_BS):
    values, logsumexps = [], []
    for i, (queries, keys) in enumerate(_blocks(q_HBTK, k_HBSK)):
        scores = _scores(alibi, q_HBTK[:, :, queries], k_HBSK[:, :, keys], segments_BS)
        with jax.named_scope("attention_softmax"):
            logsumexp = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
            weights = checkpoint_name(jnp.exp(scores - logsumexp), "softmax")
            weights = drop(weights, rate, kept and kept[i]).astype(v_HBSK.dtype)
        with jax.named_scope("attention_values"):
            values.append(contract("HBTS,HBSK->HBTK", weights, v_HBSK[:, :, keys]))
        logsumexps.append(logsumexp)
    with jax.named_scope("attention_values"):
        values_HBTK = checkpoint_name(jnp.concatenate(values, axis=2), "values")
    with jax.named_scope("attention_softmax"):
        logsumexp_HBT1 = checkpoint_name(jnp.concatenate(logsumexps, axis=2), "weights_logsumexp")
    residuals = (q_HBTK, k_HBSK, v_HBSK, kept, segments_BS, values_HBTK, logsumexp_HBT1)
    return values_HBTK, residuals


def _backward(alibi, rate, residuals, dvalues_HBTK):
    q_HBTK, k_HBSK, v_HBSK, kept, segments_BS, values_HBTK, logsumexp_HBT1 = residuals
    dtype, n_keys = q_HBTK.dtype, k_HBSK.shape[2]
    # The sum over keys of weight times gradient, from the values: no pass over the scores.
    with jax.named_scope("attention_softmax"):
        products = dvalues_HBTK.astype(jnp.float32) * values_HBTK.astype(jnp.float32)
        dot_HBT1 = jnp.sum(products, axis=-1, keepdims=True)
    dq, dk, dv = [], [], []
    for i, (queries, keys) in enumerate(_blocks(q_HBTK, k_HBSK)):
        q, k, v = q_HBTK[:, :, queries], k_HBSK[:, :, keys], v_HBSK[:, :, keys]
        dvalues = dvalues_HBTK[:, :, queries]
        scores = _scores(alibi, q, k, segments_BS)
        with jax.named_scope("attention_softmax"):
            weights = jnp.exp(scores - logsumexp_HBT1[:, :, queries])
            dropped = drop(weights, rate, kept and kept[i]).astype(dtype)
        with jax.named_scope("attention_values"):
            dweights = contract("HBTK,HBSK->HBTS", dvalues, v, jnp.float32)
        with jax.named_scope("attention_softmax"):
            dweights = drop(dweights, rate, kept and kept[i]) - dot_HBT1[:, :, queries]
            dscores = (weights * dweights / q.shape[-1] ** 0.5).astype(dtype)
        with jax.named_scope("attention_scores"):
            dq.append(contract("HBTS,HBSK->HBTK", dscores, k))
            dk.append(contract("HBTS,HBTK->HBSK", dscores, q))
        with jax.named_scope("attention_values"):
            dv.append(contract("HBTS,HBTK->HBSK", dropped, dvalues))
    with jax.named_scope("attention_scores"):
        dq_HBTK, dk_HBSK = jnp.concatenate(dq, axis=2), _sum_blocks(dk, n_keys)
    with jax.named_scope("attention_values"):
        dv_HBSK = _sum_blocks(dv, n_keys)
    return dq_HBTK, dk_HBSK, dv_HBSK, None, None


attend.defvjp(_forward, _backward)


def _blocks(q_HBTK: jax.Array, k_HBSK: jax.Array) -> Iterator[tuple[slice, slice]]:
    """The queries of each block, and the keys at or before the last of them."""
    n_queries, n_keys = q_HBTK.shape[2], k_HBSK.shape[2]
    for start in range(0, n_queries, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, n_queries)
        yield slice(start, end), slice(0, n_keys - n_queries + end)


def _sum_blocks(blocks: list[jax.Array], n_keys: int) -> jax.Array:
    """The sum of arrays [H, B, .., K] that end at different keys, in float32."""
    padding = [[(0, 0), (0, 0), (0, n_keys - block.shape[2]), (0, 0)] for block in blocks]
    wide = [jnp.pad(b.astype(jnp.float32), p) for b, p in zip(blocks, padding, strict=True)]
    return sum(wide[1:], wide[0]).astype(blocks[0].dtype)


def _scores(
    alibi: bool, q_HBTK: jax.Array, k_HBSK: jax.Array, segments_BS: jax.Array | None
) -> jax.Array:
    """Scores, float32 [H, B, T, S]; -inf for keys after each query or in another document."""
    n_heads, _, n_queries, head_size = q_HBTK.shape
    n_keys = k_HBSK.shape[2]
    with jax.named_scope("attention_scores"):
        scores = contract("HBTK,HBSK->HBTS", q_HBTK, k_HBSK, jnp.float32)
        scores = checkpoint_name(scores, "scores") / head_size**0.5
        if alibi:
            head_axis = jax.typeof(scores).sharding.spec[0]
            bias_HTS = jax.reshard(alibi_bias(n_heads, n_keys), P(head_axis, None, None))
            scores = scores + bias_HTS[:, None]
    last_key_T = n_keys - n_queries + jnp.arange(n_queries)
    visible = (jnp.arange(n_keys)[None, :] <= last_key_T[:, None])[None, None]
    if segments_BS is not None:
        of_keys = segments_BS[:, :n_keys]
        of_queries = of_keys[:, n_keys - n_queries :]
        visible = visible & (of_queries[:, :, None] == of_keys[:, None, :])[None]
    with jax.named_scope("attention_scores"):
        return jnp.where(visible, scores, -jnp.inf)


def draw_weights_kept(
    rate: float, q_HBTK: jax.Array, k_HBSK: jax.Array, key: jax.Array
) -> list[jax.Array]:
    """For each block of queries, the weights that dropout keeps, bool [H, B, T, S]."""
    spec = jax.typeof(q_HBTK).sharding.spec
    kept = []
    for i, (queries, keys) in enumerate(_blocks(q_HBTK, k_HBSK)):
        shape = (*q_HBTK.shape[:2], queries.stop - queries.start, keys.stop)
        kept.append(draw_kept(jax.random.fold_in(key, i), rate, shape, P(*spec[:2], None, None)))
    return kept
