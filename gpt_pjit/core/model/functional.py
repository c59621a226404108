"""The model as pure functions of a nested dict of arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from gpt_pjit.config import ModelConfig
from gpt_pjit.core.model import cache as caches
from gpt_pjit.core.model.cache import Cache
from gpt_pjit.core.model.gpt import GPT


def init_params(c: ModelConfig, sequence_length: int, key: jax.Array) -> Any:
    """Fresh float32 parameters: normal with std 0.02, residual outputs divided by sqrt(2 L)."""
    return nnx.to_pure_dict(nnx.state(GPT(c, sequence_length, rngs=nnx.Rngs(params=key))))


@functools.cache
def param_shapes(c: ModelConfig, sequence_length: int) -> Any:
    """The tree of ShapeDtypeStructs of `init_params`."""
    return jax.eval_shape(lambda: init_params(c, sequence_length, jax.random.key(0)))


@functools.cache
def _graph(c: ModelConfig, sequence_length: int) -> Any:
    return nnx.split(nnx.eval_shape(lambda: GPT(c, sequence_length, rngs=nnx.Rngs(0))))[0]


def forward(
    c: ModelConfig,
    params: Any,
    tokens_BT: jax.Array,
    key: jax.Array | None = None,
    at_use: Callable[[Any], Any] = lambda block: block,
    segments_BT: jax.Array | None = None,
) -> jax.Array:
    """Logits, float32 [B, T, V]. See `GPT.__call__`."""
    return _model(c, params)(tokens_BT, key, at_use, segments_BT)


def extend(
    c: ModelConfig,
    params: Any,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    cache: Cache | None = None,
    slot: jax.Array | int = 0,
    at_use: Callable[[Any], Any] = lambda block: block,
    every: bool = False,
) -> tuple[jax.Array, Cache]:
    """Logits after each row's last token, or every one, and the cache. See `cache.extend`."""
    model = _model(c, params)
    return caches.extend(model, tokens_BT, positions_BT, cache, slot, at_use, every)


def _model(c: ModelConfig, params: Any) -> GPT:
    learned = params.get("positions")
    sequence_length = learned["embedding"].shape[0] if learned else 0
    return nnx.merge(_graph(c, sequence_length), params)


def count_params(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
