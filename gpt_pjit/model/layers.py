"""Building blocks: contractions, norms, dropout. They name no mesh axis: specs follow their inputs.

Shape suffixes: B batch, T sequence, S keys, D model, H heads, K head size, F feed-forward,
V vocabulary, L layers.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding, PartitionSpec as P

NORM_EPSILON = 1e-5
INIT_STD = 0.02


@partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def contract(
    equation: str, x: jax.Array, w: jax.Array, dtype: Any = None, out: NamedSharding | None = None
) -> jax.Array:
    """Two-operand einsum that accumulates in float32 and returns `dtype` (default: that of `x`).

    The cotangent is cast to the operands' dtype before the backward products, so that float32
    outputs (scores, logits) do not turn those products into float32 ones.
    """
    dtype = dtype or x.dtype
    return jnp.einsum(equation, x, w, preferred_element_type=dtype, out_sharding=out)


def _contract_forward(equation, x, w, dtype, out):
    return contract(equation, x, w, dtype, out), (x, w)


def _contract_backward(equation, dtype, out, operands, cotangent):
    _, vjp = jax.vjp(lambda x, w: jnp.einsum(equation, x, w, out_sharding=out), *operands)
    return vjp(cotangent.astype(operands[0].dtype))


contract.defvjp(_contract_forward, _contract_backward)


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """`x + bias` over the trailing dimensions of `x` [B, T, ...].

    A product with ones, since explicit sharding refuses to add a `reduced` vector to a sharded array.
    """
    spec = P(*jax.typeof(x).sharding.spec[:2])
    ones_BT = jax.reshard(jnp.ones(x.shape[:2], x.dtype), spec)
    trailing = "CHK"[3 - bias.ndim :]
    return x + jnp.einsum(f"BT,{trailing}->BT{trailing}", ones_BT, bias.astype(x.dtype))


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes elements with probability `rate`; the mask depends on `key` alone, not on the mesh."""
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape, out_sharding=jax.typeof(x).sharding)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


class Projection(nnx.Module):
    """A linear map given by an einsum equation, e.g. `BTD,DF->BTF`, over dimensions by letter."""

    def __init__(self, equation: str, sizes: dict[str, int], std: float, bias: bool, rngs: nnx.Rngs):
        kernel, output = equation.split(",")[1].split("->")
        shape = tuple(sizes[letter] for letter in kernel)
        self.equation = equation
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), shape))
        self.bias = (
            nnx.Param(jnp.zeros(tuple(sizes[letter] for letter in output[2:]))) if bias else None
        )

    def __call__(self, x: jax.Array, out: NamedSharding | None = None) -> jax.Array:
        y = contract(self.equation, x, self.kernel[...], None, out)
        return y if self.bias is None else add_bias(y, self.bias[...])


class LayerNorm(nnx.Module):
    """Layer norm with statistics, gain and bias in float32; returns the dtype of its input."""

    def __init__(self, d_model: int, bias: bool):
        self.scale = nnx.Param(jnp.ones(d_model))
        self.bias = nnx.Param(jnp.zeros(d_model)) if bias else None

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        x = x_BTD.astype(jnp.float32)
        mean = checkpoint_name(jnp.mean(x, axis=-1, keepdims=True), "norm_mean")
        variance = checkpoint_name(jnp.mean((x - mean) ** 2, -1, keepdims=True), "norm_variance")
        normed = (x - mean) * jax.lax.rsqrt(variance + NORM_EPSILON)
        # An einsum, since explicit sharding refuses to multiply a `reduced` vector elementwise.
        normed = jnp.einsum("BTD,D->BTD", normed, self.scale[...])
        if self.bias is not None:
            normed = add_bias(normed, self.bias[...])
        return normed.astype(x_BTD.dtype)
