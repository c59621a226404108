"""`attend` as a TPU kernel that keeps no scores in memory, as FlashAttention (Dao et al., 2022).

A step of its grid takes a block of queries of one head. Keys and values of the row stay on the chip
for all blocks and heads of their group, and the step loops over the chunks of them that one of its
queries sees. Masks, biases and documents are those of `blocks.attend`, its oracle. Queries and keys
may be normed and rotated here, which saves a pass through memory for each, both ways.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from gpt_pjit.core.chips import chip_of_kind
from gpt_pjit.core.model.blocks import QUERY_BLOCK, heads_of, query_blocks
from gpt_pjit.core.model.dropout import kept
from gpt_pjit.core.model.kernel_steps import (
    LANES,
    Extras,
    Shape,
    backward_kernel,
    chunks_visited,
    forward_kernel,
    prepares,
)
from gpt_pjit.core.model.positions import Rotation, alibi_bias, as_product
from gpt_pjit.core.sharding import device_kind

KEY_CHUNK = 512
TILES = 8 * 2**20  # bytes on the chip beside keys, values and their gradients


class Preparation(NamedTuple):
    """What is done to queries and keys before they meet."""

    epsilon: float | None = None  # of an RMS norm without gain
    rotation: Rotation | None = None
    factor: float = 1.0  # of the queries


def kernel_wins(q_HBTK: jax.Array) -> bool:
    """Whether the devices of the mesh run the kernel faster than the plain form: TPUs from v4 on,
    in bfloat16, on whole blocks of queries, if keys and values fit on the chip.
    """
    whole = q_HBTK.dtype == jnp.bfloat16 and q_HBTK.shape[2] % QUERY_BLOCK == 0
    return chip_of_kind(device_kind()) is not None and whole and _has_room(q_HBTK, False)


def room_for_angles(q_HBTK: jax.Array) -> bool:
    """Whether the chip can hold, beside keys and values, what it takes to make them ready."""
    return _has_room(q_HBTK, True)


def attend_in_kernel(
    preparation: Preparation,
    alibi: bool,
    rate: float,
    window: int,
    q_GRBTK: jax.Array,
    k_GBTK: jax.Array,
    v_GBTK: jax.Array,
    masks: Iterable[jax.Array] | None,
    segments_BT: jax.Array | None,
) -> jax.Array:
    """The values of `attend` after the `preparation`, as heads [H, B, T, K], for rows whose queries
    and keys are the same tokens.

    On other devices than TPUs the kernel is interpreted, which is slow and for tests.
    """
    length = q_GRBTK.shape[-2]
    block = min(QUERY_BLOCK, -(-length // 32) * 32)
    padded = -(-length // block) * block  # with keys after those that a query sees
    chunk = KEY_CHUNK if padded % KEY_CHUNK == 0 else block
    keep = kept(rate) if masks else 1.0
    scale = q_GRBTK.shape[-1] ** -0.5 * preparation.factor
    interpret = not device_kind().startswith("TPU")
    shape = Shape(block, chunk, window, keep, scale, preparation.epsilon, interpret)

    def pad(x: jax.Array, axis: int, before: int = 0) -> jax.Array:
        room = [(0, 0)] * x.ndim
        room[axis] = (before, padded - before - x.shape[axis])
        return jnp.pad(x, room)

    q, k, v = (pad(x, -2) for x in (q_GRBTK, k_GBTK, v_GBTK))
    heads = jax.typeof(q).sharding.spec[0]
    extras = Extras()
    if q.ndim == 4:
        q = q[:, None]
    if alibi:
        bias = alibi_bias(q.shape[0] * q.shape[1], padded).reshape(*q.shape[:2], 1, padded)
        extras = extras._replace(bias=jax.reshard(bias, P(heads)))
    if masks:
        ranges = query_blocks(window, q_GRBTK, k_GBTK)
        with jax.named_scope("dropout"):
            of_all = [pad(m, -1, keys.start) for m, (_, keys) in zip(masks, ranges, strict=True)]
            words = checkpoint_name(jnp.stack(of_all, axis=-3), "dropout_mask")
        extras = extras._replace(masks=words.reshape(*q.shape[:3], *words.shape[-3:]))
    if segments_BT is not None:
        extras = extras._replace(segments=pad(segments_BT, -1)[:, None])
    if preparation.rotation is not None:
        cos, sin, swap = as_product(preparation.rotation, q)
        extras = extras._replace(cos=pad(cos, -2), sin=pad(sin, -2), swap=jax.reshard(swap, P()))
    return _attend(shape, q, k, v, extras)[..., :length, :]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(shape: Shape, q: jax.Array, k: jax.Array, v: jax.Array, extras: Extras) -> jax.Array:
    return _forward(shape, q, k, v, extras)[0]


@jax.named_scope("attention_kernel")
def _forward(shape: Shape, q: jax.Array, k: jax.Array, v: jax.Array, extras: Extras) -> Any:
    inputs = (q, k, v, extras)

    def run(*local: Any) -> Any:
        q, _, _, extras = local
        blocks = _Blocks(shape, q, extras)
        scratch = [(shape.block, LANES), (shape.block, LANES), (shape.block, q.shape[-1])]
        outputs = [(q, blocks.queries), (blocks.column(), blocks.columns)]
        return blocks.call(forward_kernel, 2, local, outputs, scratch)

    specs = _specs(inputs)
    values, logsumexp = _on_each_device(run, inputs, (specs[0], P(*specs[0][:-2], None, None)))
    # Nothing else in a half of a block may use them, or JAX rounds them, in a pass of its own.
    values = checkpoint_name(heads_of(values), "values")
    logsumexp = checkpoint_name(logsumexp, "weights_logsumexp")
    return values, (*inputs, values, logsumexp)


@jax.named_scope("attention_kernel")
def _backward(shape: Shape, residuals: Any, dvalues: jax.Array) -> Any:
    q, *others, values, logsumexp = residuals
    values, dvalues = (
        x.reshape(q.shape, out_sharding=jax.typeof(q).sharding.spec) for x in (values, dvalues)
    )
    inputs = (q, *others, values, logsumexp, dvalues)

    def run(*local: Any) -> Any:
        q, k, _, extras, *_ = local
        blocks = _Blocks(shape, q, extras)
        scratch = [k.shape[2:], k.shape[2:], (shape.block, q.shape[-1])]
        outputs = [(q, blocks.queries), (k, blocks.keys), (k, blocks.keys)]
        return blocks.call(backward_kernel, 5, local, outputs, scratch)

    return (*_on_each_device(run, inputs, _specs(inputs)[:3]), None)


_attend.defvjp(_forward, _backward)


class _Blocks:
    """How the arrays of one device are cut for the steps of the grid: groups, rows, heads of a
    group, blocks of queries.
    """

    def __init__(self, shape: Shape, q: jax.Array, extras: Extras):
        self.shape, self.prepares = shape, prepares(shape, extras)
        self.groups, self.repeats, self.rows, self.length, self.size = q.shape
        n, length, size = shape.block, self.length, self.size
        self.grid = (self.groups, self.rows, self.repeats, length // n)
        by_head, by_row = (None, None, None), (None, None)
        self.queries = pl.BlockSpec((*by_head, n, size), lambda g, b, r, i: (g, r, b, i, 0))
        self.keys = pl.BlockSpec((*by_row, length, size), lambda g, b, r, i: (g, b, 0, 0))
        self.columns = pl.BlockSpec((*by_head, 1, n), lambda g, b, r, i: (g, r, b, 0, i))
        words = (*by_head, None, n // 32, length)
        distinct = 1 if extras.cos is None else extras.cos.shape[0]
        angles = pl.BlockSpec((None, length, size), lambda g, b, r, i: (b % distinct, 0, 0))
        self.extras = Extras(
            pl.BlockSpec((*by_row, 1, length), lambda g, b, r, i: (g, r, 0, 0)),
            pl.BlockSpec(words, lambda g, b, r, i: (g, r, b, i, 0, 0)),
            pl.BlockSpec((None, 1, length), lambda g, b, r, i: (b, 0, 0)),
            angles,
            angles,
            pl.BlockSpec((size, size), lambda g, b, r, i: (0, 0)),
        )

    def column(self) -> jax.ShapeDtypeStruct:
        """A number for each query. They lie along the lanes: a TPU pads a column to 128 of them."""
        shape = (self.groups, self.repeats, self.rows, 1, self.length)
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def call(
        self,
        kernel: Callable[..., None],
        n_products: int,
        inputs: tuple[Any, ...],
        outputs: list[tuple[Any, pl.BlockSpec]],
        scratch: Sequence[tuple[int, ...]],
    ) -> Any:
        _, k, _, extras, *rest = inputs
        given = zip(extras, self.extras, strict=True)
        of_extras = Extras(*(None if x is None else spec for x, spec in given))
        of_rest = [self.queries, self.columns, self.queries][: len(rest)]
        out_shape = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _ in outputs]
        scores = math.prod(self.grid[:3]) * self._visited()
        moved = jax.tree.leaves((inputs, out_shape))
        ready = [pltpu.VMEM((self.length, self.size), k.dtype)] if self.prepares else []
        return pl.pallas_call(
            partial(kernel, self.shape),
            grid=self.grid,
            in_specs=[self.queries, self.keys, self.keys, of_extras, *of_rest],
            out_specs=[spec for _, spec in outputs],
            out_shape=out_shape,
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch] + ready,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
                vmem_limit_bytes=_bytes_on_chip(self.length, self.size, self.prepares),
            ),
            cost_estimate=pl.CostEstimate(
                flops=2 * n_products * scores * self.size,
                transcendentals=scores,
                bytes_accessed=sum(x.size * x.dtype.itemsize for x in moved),
            ),
            interpret=self.shape.interpret,
            name=kernel.__name__,
        )(*inputs)

    def _visited(self) -> int:
        """The scores that the steps of one head compute."""
        block, chunk, *_ = self.shape
        return block * chunk * chunks_visited(self.shape, self.length)


def _has_room(q_HBTK: jax.Array, prepares: bool) -> bool:
    chip, (length, size) = chip_of_kind(device_kind()), q_HBTK.shape[2:]
    return chip is None or _bytes_on_chip(length, size, prepares) <= chip.vmem_bytes


def _bytes_on_chip(length: int, head_size: int, prepares: bool) -> int:
    """Of keys, values and their gradients, two of each, and sums in float32; of ready keys and two
    each of cosines and sines; and of tiles.
    """
    each = 4 * 2 * 2 + 2 * 4 + prepares * (2 + 2 * 2 * 4)
    return length * max(head_size, LANES) * each + TILES


def _on_each_device(run: Callable[..., Any], inputs: Any, out_specs: Any) -> Any:
    """Heads and rows are split over devices, which need nothing of each other."""
    specs = _specs(inputs)
    return jax.shard_map(run, in_specs=specs, out_specs=out_specs, check_vma=False)(*inputs)


def _specs(arrays: Any) -> Any:
    return jax.tree.map(lambda x: jax.typeof(x).sharding.spec, arrays)
