"""Attention over blocks of queries, softmax in float32: what runs everywhere."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from gpt_pjit.core.model.dropout import draw_mask, drop
from gpt_pjit.core.model.layers import computed_twice, contract
from gpt_pjit.core.model.loops import Block, Loop, part
from gpt_pjit.core.model.positions import alibi_bias

QUERY_BLOCK = 256
LOOPS = 16  # More blocks than these share loops, so that the program does not grow with the row.


def by_group(x_HBTK: jax.Array, n_groups: int) -> jax.Array:
    """Heads [G, R, B, T, K]: the R of a group share their keys and values. Without R if it is 1,
    since the TPU compiler makes less of the longer products.
    """
    if n_groups == x_HBTK.shape[0]:
        return x_HBTK
    heads, *rest = jax.typeof(x_HBTK).sharding.spec
    shape = (n_groups, x_HBTK.shape[0] // n_groups, *x_HBTK.shape[1:])
    return x_HBTK.reshape(shape, out_sharding=P(heads, None, *rest))


def heads_of(x_GRBTK: jax.Array) -> jax.Array:
    """The heads [H, B, T, K] that `by_group` grouped."""
    if x_GRBTK.ndim == 4:
        return x_GRBTK
    heads, _, *rest = jax.typeof(x_GRBTK).sharding.spec
    return x_GRBTK.reshape(-1, *x_GRBTK.shape[2:], out_sharding=P(heads, *rest))


def contract_groups(equation: str, x: jax.Array, y: jax.Array, dtype: Any = None) -> jax.Array:
    """`contract` of heads as `by_group` gives them; R is in the equation in any case."""
    return contract(equation.replace("R", "") if x.ndim == 4 else equation, x, y, dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Masks:
    """For each block of queries, the `draw_mask` of its weights [G, R, B, T, S]; that of the last
    block is as tall as the others. `draw` gives them one at a time.
    """

    key: jax.Array
    rate: float = field(metadata={"static": True})
    window: int = field(metadata={"static": True})
    q: Any = field(metadata={"static": True})  # types of the queries and keys
    k: Any = field(metadata={"static": True})

    def draw(self, block: Block) -> jax.Array:
        """With all keys of the block, as its loop takes them."""
        *outer, n_queries, _ = self.q.shape
        shape = (*outer, min(QUERY_BLOCK, n_queries), block.width)
        spec = P(*self.q.sharding.spec[:-2], None, None)
        return draw_mask(jax.random.fold_in(self.key, block.number), self.rate, shape, spec)

    def __iter__(self) -> Iterator[jax.Array]:
        seen = query_blocks(self.window, self.q, self.k)
        for loop in loops(self.window, self.q, self.k):
            for i in range(loop.n_blocks):
                block, (_, keys) = loop.block(i), next(seen)
                yield self.draw(block)[..., keys.start - block.key : keys.stop - block.key]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def attend(
    alibi: bool,
    rate: float,
    window: int,
    q_GRBTK: jax.Array,
    k_GBSK: jax.Array,
    v_GBSK: jax.Array,
    masks: list[jax.Array] | Masks | None,
    segments_BS: jax.Array | None,
) -> jax.Array:
    """The weighted values, [G, R, B, T, K]; query T - 1 is at key S - 1.

    `masks` are those of `draw_masks`; with `segments_BS`, the document of each key, a
    query sees only its own document, and with a `window` only so many keys, its own included. A
    block of queries reads no key that none of them sees: four blocks compute 5/8 of the scores; of
    many, those of a loop read the same keys, and all together compute 17/32. No scores are kept for
    the backward pass, which recomputes them, and the softmax from their logsumexp, as
    FlashAttention does (Dao et al., 2022). The forward pass makes them twice: for their maximum,
    and for the weights, which stay unnormalised until they are summed.
    """
    return _forward(alibi, rate, window, q_GRBTK, k_GBSK, v_GBSK, masks, segments_BS)[0]


def _forward(alibi, rate, window, q_GRBTK, k_GBSK, v_GBSK, masks, segments_BS):
    again = computed_twice((q_GRBTK, k_GBSK))

    def run(block: Block) -> tuple[tuple[jax.Array, ...], tuple[()]]:
        mask = _mask(masks, block)
        q, k = block.queries_of(q_GRBTK), block.keys_of(k_GBSK)
        scores = _scores(alibi, window, block, q, k, segments_BS)
        with jax.named_scope("attention_softmax"):
            maximum = jax.lax.optimization_barrier(jnp.max(scores, axis=-1, keepdims=True))
        q, k = block.queries_of(again[0]), block.keys_of(again[1])
        scores = _scores(alibi, window, block, q, k, segments_BS)
        with jax.named_scope("attention_softmax"):
            weights = checkpoint_name(jnp.exp(scores - maximum), "softmax")
            total = jnp.sum(weights, axis=-1, keepdims=True)
            logsumexp = maximum + jnp.log(total)
            weights = drop(weights, rate, mask).astype(v_GBSK.dtype)
        with jax.named_scope("attention_values"):
            v = block.keys_of(v_GBSK)
            values = contract_groups("GRBTS,GBSK->GRBTK", weights, v, jnp.float32) / total
            return (values.astype(v.dtype), logsumexp), ()

    made = [loop.run(run)[0] for loop in loops(window, q_GRBTK, k_GBSK)]
    values, logsumexps = zip(*made, strict=True)
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

    def run(block: Block) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        mask = _mask(masks, block)
        q, k, v = block.queries_of(q_GRBTK), block.keys_of(k_GBSK), block.keys_of(v_GBSK)
        dvalues = block.queries_of(dvalues_GRBTK)
        scores = _scores(alibi, window, block, q, k, segments_BS)
        with jax.named_scope("attention_softmax"):
            weights = jnp.exp(scores - block.queries_of(logsumexp_GRBT1))
            dropped = drop(weights, rate, mask).astype(dtype)
        with jax.named_scope("attention_values"):
            dweights = contract_groups("GRBTK,GBSK->GRBTS", dvalues, v, jnp.float32)
        with jax.named_scope("attention_softmax"):
            dweights = drop(dweights, rate, mask) - block.queries_of(dot_GRBT1)
            dscores = (weights * dweights / q.shape[-1] ** 0.5).astype(dtype)
        with jax.named_scope("attention_scores"):
            dq = contract_groups("GRBTS,GBSK->GRBTK", dscores, k)
            dk = contract_groups("GRBTS,GRBTK->GBSK", dscores, q)
        with jax.named_scope("attention_values"):
            dv = contract_groups("GRBTS,GRBTK->GBSK", dropped, dvalues)
        return dq, (dk, dv)

    dq, dk, dv = [], [], []
    for loop in loops(window, q_GRBTK, k_GBSK):
        of_queries, of_keys = loop.run(run, like=(k_GBSK, v_GBSK))
        dq.append(of_queries)
        dk.append((loop.keys, of_keys[0]))
        dv.append((loop.keys, of_keys[1]))
    with jax.named_scope("attention_scores"):
        dq_GRBTK, dk_GBSK = _join_blocks(dq), _sum_blocks(dk, n_keys, dtype)
    with jax.named_scope("attention_values"):
        dv_GBSK = _sum_blocks(dv, n_keys, dtype)
    return dq_GRBTK, dk_GBSK, dv_GBSK, None, None


attend.defvjp(_forward, _backward)


def query_blocks(
    window: int, q_GRBTK: jax.Array, k_GBSK: jax.Array
) -> Iterator[tuple[slice, slice]]:
    """The queries of each block, and the keys that one of them sees."""
    n_queries, n_keys = q_GRBTK.shape[-2], k_GBSK.shape[-2]
    before = n_keys - n_queries
    for start in range(0, n_queries, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, n_queries)
        first = max(0, before + start + 1 - window) if window else 0
        yield slice(start, end), slice(first, before + end)


def loops(window: int, q_GRBTK: jax.Array, k_GBSK: jax.Array) -> Iterator[Loop]:
    """The loops that run the blocks. A few blocks run each alone. Of many, those that read from the
    first key on are parted into sixteenths, with the keys of the last for each; those whose window
    begins later are in one loop.
    """
    blocks = list(query_blocks(window, q_GRBTK, k_GBSK))
    cuts = {*range(len(blocks) + 1)}
    if len(blocks) > LOOPS:
        from_first = sum(keys.start == 0 for _, keys in blocks)
        cuts = {from_first * i // LOOPS for i in range(LOOPS + 1)}
        cuts |= {q_GRBTK.shape[-2] // QUERY_BLOCK, len(blocks)}  # a shorter one alone
    for start, stop in pairwise(sorted(cuts)):
        (queries, first), (_, last) = blocks[start], blocks[stop - 1]
        width = (last if last.start == 0 else first).stop - first.start
        rows, keys = queries.stop - queries.start, slice(first.start, last.stop)
        yield Loop(start, stop - start, queries.start, rows, keys, width)


def _join_blocks(blocks: Sequence[jax.Array]) -> jax.Array:
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


def _sum_blocks(blocks: list[tuple[slice, jax.Array]], n_keys: int, dtype: Any) -> jax.Array:
    """The sum of arrays [G, B, .., K] of these keys, made in float32."""
    padding = [((0, 0), (0, 0), (keys.start, n_keys - keys.stop), (0, 0)) for keys, _ in blocks]
    wide = [
        jnp.pad(block.astype(jnp.float32), p) for (_, block), p in zip(blocks, padding, strict=True)
    ]
    return sum(wide[1:], wide[0]).astype(dtype)


def _scores(
    alibi: bool,
    window: int,
    block: Block,
    q_GRBTK: jax.Array,
    k_GBSK: jax.Array,
    segments_BS: jax.Array | None,
) -> jax.Array:
    """Scores of a block's queries and keys, float32 [G, R, B, T, S], -inf for those not seen."""
    with jax.named_scope("attention_scores"):
        scores = contract_groups("GRBTK,GBSK->GRBTS", q_GRBTK, k_GBSK, jnp.float32)
        scores = checkpoint_name(scores, "scores") / q_GRBTK.shape[-1] ** 0.5
        if alibi:
            scores = scores + _bias(scores)
    key_TS, query_TS = (
        jnp.arange(block.width)[None],
        (block.own + jnp.arange(block.rows))[:, None],
    )
    visible = key_TS <= query_TS
    if window:
        visible = visible & (key_TS > query_TS - window)
    visible = jnp.expand_dims(visible, range(scores.ndim - 2))
    if segments_BS is not None:
        of_keys = block.keys_of(segments_BS, axis=-1)
        of_queries = part(of_keys, block.own, block.rows, axis=-1)
        same_BTS = of_queries[:, :, None] == of_keys[:, None, :]
        visible = visible & jnp.expand_dims(same_BTS, range(scores.ndim - 3))
    with jax.named_scope("attention_scores"):
        return jnp.where(visible, scores, -jnp.inf)


def _bias(scores_GRBTS: jax.Array) -> jax.Array:
    """ALiBi's bias of each key of a block, float32 [G, R, 1, 1, S], beside its head."""
    *heads, _, _, n_keys = scores_GRBTS.shape
    bias = alibi_bias(math.prod(heads), n_keys).reshape(*heads, 1, 1, n_keys)
    return jax.reshard(bias, P(jax.typeof(scores_GRBTS).sharding.spec[0]))


def largest_scores(
    alibi: bool,
    window: int,
    q_GRBTK: jax.Array,
    k_GBSK: jax.Array,
    segments_BS: jax.Array | None,
) -> jax.Array:
    """The largest score that any query of a row sees, in any head, float32 [B].

    ALiBi's biases are the paper's: 0 for the query's own key, less for those before it.
    """

    def run(block: Block) -> tuple[jax.Array, tuple[()]]:
        q, k = block.queries_of(q_GRBTK), block.keys_of(k_GBSK)
        scores = _scores(alibi, window, block, q, k, segments_BS)
        largest = jnp.max(scores, axis=-1, keepdims=True)
        if alibi:
            own = part(_bias(scores), block.own, block.rows, axis=-1)
            largest -= jnp.swapaxes(own, -1, -2)
        largest_B = jnp.max(largest, axis=(*range(largest.ndim - 3), -2, -1))
        return largest_B[None], ()  # as if of one query

    made = [loop.run(run)[0] for loop in loops(window, q_GRBTK, k_GBSK)]
    return jnp.max(jnp.concatenate(made), axis=0)


def draw_masks(
    rate: float, window: int, q_GRBTK: jax.Array, k_GBSK: jax.Array, key: jax.Array
) -> list[jax.Array] | Masks:
    """`Masks` of many blocks, which draws none before it is used; of a few, the list of them."""
    masks = Masks(key, rate, window, jax.typeof(q_GRBTK), jax.typeof(k_GBSK))
    return list(masks) if q_GRBTK.shape[-2] <= LOOPS * QUERY_BLOCK else masks


def _mask(masks: list[jax.Array] | Masks | None, block: Block) -> jax.Array | None:
    if isinstance(masks, Masks):
        return masks.draw(block)
    return masks[block.number] if masks else None
