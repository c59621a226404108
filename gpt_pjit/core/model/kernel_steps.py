"""What a step of the attention kernel computes, on references to memory of the chip.

B batch, G groups of heads, R heads of a group, S keys of a row, K head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

# The score of a key that is not seen. Not -inf: a query may see no key of the first chunks, and its
# weights there, which are wrong, vanish when it sees one.
HIDDEN = -1e30
LANES = 128


class Extras(NamedTuple):
    """What else shapes the weights; None is left out. Of arrays, or of references to a part."""

    bias: Any = None  # float32 [G, R, 1, S], of each key
    masks: Any = None  # [G, R, B, blocks, words, S]: the `draw_mask` of each block
    segments: Any = None  # [B, 1, S]
    cos: Any = None  # with `sin` and `swap`, `as_product` of the rotation; B may be 1
    sin: Any = None
    swap: Any = None


class Shape(NamedTuple):
    """What is fixed when the kernel is compiled."""

    block: int  # queries
    chunk: int  # keys
    window: int
    kept: float  # the probability that dropout keeps a weight
    scale: float  # of the scores
    epsilon: float | None  # of the norm of queries and keys, if there is one
    interpret: bool


def forward_kernel(
    shape, q_ref, k_ref, v_ref, extras, o_ref, logsumexp_ref, maximum, total, sums, *ready
):  # fmt: skip
    """Of one block: its values, and the logsumexps of its scores."""
    keys = _ready_keys(shape, k_ref, extras, *ready)
    maximum[...] = jnp.full_like(maximum, HIDDEN)
    total[...], sums[...] = jnp.zeros_like(total), jnp.zeros_like(sums)
    q = _ready(shape, q_ref[...], extras, _own_rows(shape))

    def add(start: jax.Array, chunk: Any) -> None:
        scores = _scores(shape, start, q, keys, extras, chunk)
        before = maximum[...]
        now = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
        weights, shrink = jnp.exp(scores - now[:, :1]), jnp.exp(before - now)
        maximum[...] = now
        total[...] = total[...] * shrink + jnp.sum(weights, axis=1, keepdims=True)
        weights = _drop(weights, extras, chunk).astype(q.dtype)
        sums[...] = sums[...] * shrink[:, :1] + _dot(weights, v_ref[chunk], 1, 0)

    _for_each_chunk(shape, add)
    o_ref[...] = (sums[...] / (total[:, :1] * shape.kept)).astype(o_ref.dtype)
    logsumexp_ref[...] = (maximum[...] + jnp.log(total[...])).T[:1]


def backward_kernel(
    shape, q_ref, k_ref, v_ref, extras, o_ref, logsumexp_ref, do_ref,
    dq_ref, dk_ref, dv_ref, dk_sum, dv_sum, dq_sum, *ready
):  # fmt: skip
    """Of one block: the gradient of its queries. Those of keys and values are summed over the
    blocks and heads of their group.
    """
    keys = _ready_keys(shape, k_ref, extras, *ready)

    @pl.when(_step() == 0)
    def _() -> None:
        dk_sum[...], dv_sum[...] = jnp.zeros_like(dk_sum), jnp.zeros_like(dv_sum)

    own = _own_rows(shape)
    q, do = _ready(shape, q_ref[...], extras, own), do_ref[...]
    dq_sum[...] = jnp.zeros_like(dq_sum)
    logsumexp = _column(logsumexp_ref[...])
    # The sum over keys of weight times gradient, from the values.
    products = do.astype(jnp.float32) * o_ref[...].astype(jnp.float32)
    dot = jnp.sum(products, axis=1, keepdims=True)

    def add(start: jax.Array, chunk: Any) -> None:
        weights = jnp.exp(_scores(shape, start, q, keys, extras, chunk) - logsumexp)
        dweights = _drop(_dot(do, v_ref[chunk], 1, 1), extras, chunk, 1 / shape.kept)
        dscores = (weights * (dweights - dot)).astype(q.dtype)
        weights = _drop(weights, extras, chunk).astype(do.dtype)
        dq_sum[...] += _dot(dscores, keys[chunk], 1, 0)
        dk_sum[chunk] += _dot(dscores, q, 0, 0)
        dv_sum[chunk] += _dot(weights, do, 0, 0)

    _for_each_chunk(shape, add)
    dq = dq_sum[...] * shape.scale
    dq_ref[...] = _gradient_before(shape, q_ref[...], dq, extras, own)

    @pl.when(_step() == pl.num_programs(2) * pl.num_programs(3) - 1)
    def _() -> None:
        dv_ref[...] = (dv_sum[...] / shape.kept).astype(dv_ref.dtype)

        def finish(rows: Any) -> None:
            dk = dk_sum[rows] * shape.scale
            dk_ref[rows] = _gradient_before(shape, k_ref[rows], dk, extras, rows)

        _for_all_keys(shape, k_ref, finish)


def _step() -> jax.Array:
    """The step among those that share keys and values."""
    return pl.program_id(2) * pl.num_programs(3) + pl.program_id(3)


def _own_rows(shape: Shape) -> Any:
    """The place of this block's queries in their row."""
    return pl.ds(pl.multiple_of(pl.program_id(3) * shape.block, shape.block), shape.block)


def prepares(shape: Shape, extras: Extras) -> bool:
    return shape.epsilon is not None or extras.cos is not None


def _ready_keys(shape: Shape, k_ref: Any, extras: Extras, *ready: Any) -> Any:
    """The keys as they meet the queries, made in the first of the steps that share them."""
    if not ready:
        return k_ref
    (keys,) = ready

    def make(rows: Any) -> None:
        keys[rows] = _ready(shape, k_ref[rows], extras, rows)

    pl.when(_step() == 0)(lambda: _for_all_keys(shape, k_ref, make))
    return keys


def _ready(shape: Shape, x: jax.Array, extras: Extras, rows: Any) -> jax.Array:
    """Queries or keys of these rows, normed and rotated, as `Heads.ready` does it."""
    if shape.epsilon is not None:
        x = (x.astype(jnp.float32) * _inverse_size(shape.epsilon, x)).astype(x.dtype)
    return x if extras.cos is None else _turned(x, extras, rows, 1).astype(x.dtype)


def _gradient_before(
    shape: Shape, x: jax.Array, gradient: jax.Array, extras: Extras, rows: Any
) -> jax.Array:
    """The gradient of `x` from that of `_ready(x)`, in float32; of the dtype of `x`."""
    if extras.cos is not None:
        gradient = _turned(gradient.astype(x.dtype), extras, rows, -1)
    if shape.epsilon is not None:
        inverse = _inverse_size(shape.epsilon, x)
        normed = x.astype(jnp.float32) * inverse
        mean = jnp.mean(gradient * normed, axis=1, keepdims=True)
        gradient = inverse * (gradient - normed * mean)
    return gradient.astype(x.dtype)


def _inverse_size(epsilon: float, x: jax.Array) -> jax.Array:
    square = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=1, keepdims=True)
    return jax.lax.rsqrt(square + epsilon)


def _turned(x: jax.Array, extras: Extras, rows: Any, direction: int) -> jax.Array:
    """`x` rotated, or back with a `direction` of -1; float32."""
    swapped = _dot(x, extras.swap[...], 1, 0)
    sin = extras.sin[rows] * direction
    return x.astype(jnp.float32) * extras.cos[rows] + swapped * sin


def _for_all_keys(shape: Shape, k_ref: Any, do: Callable[[Any], None]) -> None:
    _in_chunks(shape, 0, k_ref.shape[0] // shape.chunk, do)


def _for_each_chunk(shape: Shape, add: Callable[[jax.Array, Any], None]) -> None:
    """Calls `add` with the place of this block's first query, and with each chunk of keys that one
    of its queries sees.
    """
    start = _own_rows(shape).start
    first, end = _seen(shape, start, jnp.maximum)
    _in_chunks(shape, first, end, lambda chunk: add(start, chunk))


def _in_chunks(shape: Shape, first: Any, end: Any, do: Callable[[Any], None]) -> None:
    """Calls `do` with the place of each chunk of keys from the `first` to before the `end`."""

    def visit(i: jax.Array, _: None) -> None:
        do(pl.ds(pl.multiple_of(i * shape.chunk, shape.chunk), shape.chunk))

    jax.lax.fori_loop(first, end, visit, None)


def _seen(shape: Shape, start: Any, maximum: Callable[..., Any] = max) -> tuple[Any, Any]:
    """The first chunk that the block of queries at `start` sees, and the end of them."""
    first = maximum(0, start + 1 - shape.window) // shape.chunk if shape.window else 0
    return first, pl.cdiv(start + shape.block, shape.chunk)


def chunks_visited(shape: Shape, length: int) -> int:
    """How many chunks the steps of one head loop over."""
    ranges = (_seen(shape, start) for start in range(0, length, shape.block))
    return sum(end - first for first, end in ranges)


def _scores(
    shape: Shape, start: jax.Array, q: jax.Array, keys: Any, extras: Extras, chunk: Any
) -> jax.Array:
    """Scores of a block, whose first query is at `start`, and a chunk; float32 [queries, keys]."""
    scores = _dot(q, keys[chunk], 1, 1) * shape.scale
    if extras.bias is not None:
        scores = scores + extras.bias[:, chunk]
    query = start + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    key = chunk.start + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    visible = key <= query
    if shape.window:
        visible &= key > query - shape.window
    if extras.segments is not None:
        own = _column(extras.segments[:, pl.ds(start, shape.block)])
        visible &= own == extras.segments[:, chunk]
    return jnp.where(visible, scores, HIDDEN)


def _drop(x: jax.Array, extras: Extras, chunk: Any, factor: float = 1.0) -> jax.Array:
    """Zero where the mask says so, as `dropout.unpacked` has it, else `x` times `factor`."""
    if extras.masks is None:
        return x
    words = extras.masks[:, chunk]
    bits = jnp.uint32(1) << jax.lax.broadcasted_iota(jnp.uint32, (32, *words.shape), 0)
    return jnp.where((words[None] & bits).reshape(x.shape) != 0, 0.0, x * factor)


def _dot(x: jax.Array, y: jax.Array, over_x: int, over_y: int) -> jax.Array:
    dimensions = (((over_x,), (over_y,)), ((), ()))
    return jax.lax.dot_general(x, y, dimensions, preferred_element_type=jnp.float32)


def _column(row: jax.Array) -> jax.Array:
    """[1, N] as [N, 1]."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T[:, :1]
