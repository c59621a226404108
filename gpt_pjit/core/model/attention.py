"""Causal multi-head self-attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from gpt_pjit.config import ModelConfig
from gpt_pjit.core.model.blocks import attend, by_group, draw_masks, heads_of
from gpt_pjit.core.model.kernel import (
    Preparation,
    attend_in_kernel,
    kernel_wins,
    room_for_angles,
)
from gpt_pjit.core.model.layers import INIT_STD, Norm, Projection, linear, scaled
from gpt_pjit.core.model.positions import Rotation, rotate

# (heads, key) to the weighted values [H, B, T, K] and what else the caller wants of the layer.
# Heads are before batch everywhere, the order in which the projections leave them on a TPU.
Attend = Callable[..., tuple[jax.Array, Any]]


class Heads(NamedTuple):
    """Queries, keys and values as projected, and what makes the first two ready to meet."""

    q_HBTK: jax.Array
    k_GBTK: jax.Array
    v_GBTK: jax.Array
    norms: tuple[Norm, Norm] | None = None  # of queries, of keys
    rotation: Rotation | None = None
    factor: float = 1.0  # of the queries

    def ready(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """All three, normed and rotated."""
        q_HBTK, k_GBTK = self.q_HBTK, self.k_GBTK
        if self.norms is not None:
            q_HBTK, k_GBTK = self.norms[0](q_HBTK), self.norms[1](k_GBTK)
        if self.rotation is not None:
            q_HBTK, k_GBTK = rotate(q_HBTK, self.rotation), rotate(k_GBTK, self.rotation)
        return scaled(q_HBTK, self.factor), k_GBTK, self.v_GBTK


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
    ) -> tuple[jax.Array, Any]:
        """What `attend` returns: the weighted values [H, B, T, K], and more."""
        with jax.named_scope("attention_projections"):
            if self.grouped:
                q_HBTK = _heads(x_BTD, self.q)
                k_GBTK, v_GBTK = (split_like(q_HBTK, _heads(x_BTD, self.kv, i)) for i in range(2))
            else:
                q_HBTK, k_GBTK, v_GBTK = (_heads(x_BTD, self.qkv, i) for i in range(3))
        norms = (self.norm_q, self.norm_k) if self.qk_norm else None
        heads = Heads(q_HBTK, k_GBTK, v_GBTK, norms, rotation, self.query_factor)
        return attend(heads)

    @jax.named_scope("attention_projections")
    def project(self, values_HBTK: jax.Array) -> jax.Array:
        """The output [B, T, D]."""
        return self.out(values_HBTK.transpose(1, 2, 0, 3))


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
    c: ModelConfig,
    window: int,
    segments_BT: jax.Array | None,
    heads: Heads,
    key: jax.Array | None,
) -> jax.Array:
    """The weighted values [H, B, T, K], in the form that `model.attention` says; with dropout of
    the weights if a `key` is given.
    """
    in_kernel = c.attention == "kernel" or (c.attention == "auto" and kernel_wins(heads.q_HBTK))
    form: Callable[..., jax.Array] = attend
    if in_kernel:
        (q_HBTK, k_GBTK, v_GBTK), preparation = for_kernel(heads)
        form = partial(attend_in_kernel, preparation)
    else:
        q_HBTK, k_GBTK, v_GBTK = heads.ready()
    rate, masks = c.dropout_attention, None
    q_GRBTK = by_group(q_HBTK, k_GBTK.shape[0])
    if key is not None and rate > 0:
        masks = draw_masks(rate, window, q_GRBTK, k_GBTK, key)
    return heads_of(
        form(c.positions == "alibi", rate, window, q_GRBTK, k_GBTK, v_GBTK, masks, segments_BT)
    )


def for_kernel(heads: Heads) -> tuple[tuple[jax.Array, jax.Array, jax.Array], Preparation]:
    """What the kernel gets, and what it does itself to make them ready: nothing where the chip has
    no room for the angles, and no norm that has a gain.
    """
    if not room_for_angles(heads.q_HBTK):
        return heads.ready(), Preparation()
    norms = heads.norms or ()
    if all(norm.is_rms and norm.scale is None for norm in norms):
        epsilon = norms[0].epsilon if norms else None
        return heads[:3], Preparation(epsilon, heads.rotation, heads.factor)
    normed = heads._replace(rotation=None, factor=1.0).ready()
    return normed, Preparation(None, heads.rotation, heads.factor)
