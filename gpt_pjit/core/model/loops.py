"""Blocks of queries, and the keys that they see, in loops: compiled once, run for many blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

Position = int | jax.Array  # traced where a loop runs


class Block(NamedTuple):
    """Consecutive queries, and consecutive keys that contain those that one of them sees."""

    number: Position
    query: Position  # the first
    rows: int
    key: Position  # the first
    width: int
    own: Position  # among these keys, that of the first query

    def queries_of(self, x: jax.Array) -> jax.Array:
        return part(x, self.query, self.rows)

    def keys_of(self, x: jax.Array, axis: int = -2) -> jax.Array:
        return part(x, self.key, self.width, axis)


class Loop(NamedTuple):
    """Consecutive blocks of as many queries and keys each: the same keys, or from block to block
    as many further as there are queries.
    """

    number: int  # of the first block
    n_blocks: int
    query: int
    rows: int
    keys: slice  # of all blocks
    width: int

    def block(self, i: Position) -> Block:
        key: Position = self.keys.start
        if self.keys.stop - self.keys.start > self.width:
            key = key + i * self.rows
        own = self.keys.stop - (self.n_blocks - i) * self.rows - key
        query = self.query + i * self.rows
        return Block(self.number + i, query, self.rows, key, self.width, own)

    def run(self, of_block: Callable[[Block], Any], like: tuple[jax.Array, ...] = ()) -> Any:
        """What `of_block` returns, of all blocks: arrays [.., T, K] of its queries, joined, and
        arrays [.., S, K] of its keys, summed in float32. The latter are of the shapes of `like`.
        """
        if self.n_blocks == 1:
            return of_block(self.block(0))

        def add(whole: jax.Array, x: jax.Array, start: Position) -> jax.Array:
            x = part(whole, start, self.width) + x.astype(whole.dtype)
            return jax.lax.dynamic_update_slice_in_dim(whole, x, start, axis=-2)

        def step(sums: list[jax.Array], i: jax.Array) -> tuple[list[jax.Array], Any]:
            block = self.block(i)
            of_queries, of_keys = of_block(block)
            start = block.key - self.keys.start
            return [add(*pair, start) for pair in zip(sums, of_keys, strict=True)], of_queries

        sums = [jnp.zeros_like(x[..., self.keys, :], jnp.float32) for x in like]
        sums, stacked = jax.lax.scan(step, sums, jnp.arange(self.n_blocks))
        return jax.tree.map(_joined, stacked), sums


def part(x: jax.Array, start: Position, size: int, axis: int = -2) -> jax.Array:
    """`size` elements of a dimension."""
    if size == x.shape[axis]:
        return x
    if isinstance(start, int):
        return jax.lax.slice_in_dim(x, start, start + size, axis=axis)
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis)


def _joined(blocks: jax.Array) -> jax.Array:
    """[N, .., T, K] to [.., N T, K]."""
    n, *outer, rows, size = blocks.shape
    spec = P(*jax.typeof(blocks).sharding.spec[1:])
    return jnp.moveaxis(blocks, 0, -3).reshape(*outer, n * rows, size, out_sharding=spec)
