"""Building blocks: contractions and norms. They name no mesh axis: specs follow their inputs.

Shape suffixes: B batch, T sequence, S keys, D model, H heads, G heads of keys and values,
K head size, F feed-forward, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from gpt_pjit.config import ModelConfig
from gpt_pjit.core.sharding import axes_of

INIT_STD = 0.02


@partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def contract(
    equation: str, x: jax.Array, w: jax.Array, dtype: Any = None, out: P | None = None
) -> jax.Array:
    """Two-operand einsum that accumulates in float32 and returns `dtype` (default: `x.dtype`).

    The cotangent is cast to the operands' dtype before the backward products; otherwise
    float32 outputs (scores, logits) would turn those products into float32 ones.
    """
    dtype = dtype or x.dtype
    return jnp.einsum(equation, x, w, preferred_element_type=dtype, out_sharding=out)


def _contract_forward(equation, x, w, dtype, out):
    return contract(equation, x, w, dtype, out), (x, w)


def _contract_backward(equation, dtype, out, operands, cotangent):
    _, vjp = jax.vjp(lambda x, w: jnp.einsum(equation, x, w, out_sharding=out), *operands)
    return vjp(cotangent.astype(operands[0].dtype))


contract.defvjp(_contract_forward, _contract_backward)


def project(equation: str, x: jax.Array, w: jax.Array, dtype: Any = None) -> jax.Array:
    """`contract` of every token of `x` [B, T, ...] with a weight; N in the equation is B and T.

    One merged dimension makes the backward products plain transposed matrices. With two, XLA on CPU
    copies the transposed operand and recomputes the activation function while it does.
    """
    return split_tokens(project_tokens(equation, merge_tokens(x), w, dtype), x.shape[:2])


def project_tokens(equation: str, x_N: jax.Array, w: jax.Array, dtype: Any = None) -> jax.Array:
    """`project` of tokens [N, ...] to [N, ...]."""
    weight_letters, out_letters = equation.split(",")[1].split("->")
    split = dict(zip(weight_letters, jax.typeof(w).sharding.spec.partitions, strict=True))
    out = P(jax.typeof(x_N).sharding.spec[0], *(split[letter] for letter in out_letters[1:]))
    return contract(equation, x_N, w, dtype, out)


# Shardings are explicit: if batch or length is 1, JAX would give its axes to the other.


def merge_tokens(x: jax.Array) -> jax.Array:
    """[B, T, ...] to [N, ...]."""
    rows, _, *rest = jax.typeof(x).sharding.spec
    return x.reshape(-1, *x.shape[2:], out_sharding=P(rows, *rest))


def split_tokens(x_N: jax.Array, batch_and_length: tuple[int, ...]) -> jax.Array:
    """[N, ...] to [B, T, ...]."""
    rows, *rest = jax.typeof(x_N).sharding.spec
    shape = (*batch_and_length, *x_N.shape[1:])
    return x_N.reshape(shape, out_sharding=P(rows, None, *rest))


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """`x + bias` over the trailing dimensions of `x` [B, T, ...].

    A product with ones: explicit sharding refuses to add a `reduced` vector to a sharded array.
    """
    spec = P(*jax.typeof(x).sharding.spec[:2])
    ones_BT = jax.reshard(jnp.ones(x.shape[:2], x.dtype), spec)
    trailing = "CHK"[3 - bias.ndim :]
    return x + jnp.einsum(f"BT,{trailing}->BT{trailing}", ones_BT, bias.astype(x.dtype))


def linear(equation: str, x: jax.Array, w: jax.Array, bias: jax.Array | None) -> jax.Array:
    """`project`, plus a bias if there is one."""
    y = project(equation, x, w)
    return y if bias is None else add_bias(y, bias)


def computed_twice(x: Any) -> Any:
    """`x`; what a TPU computes from it is not taken for what it computes from the original.

    There, an operand of a product is often cheaper to make again than to write and read. Other
    platforms, which fuse less into products, make it once.
    """
    return jax.lax.platform_dependent(x, tpu=jax.lax.optimization_barrier, default=lambda x: x)


def scaled(x: jax.Array, factor: float) -> jax.Array:
    """`x` times a factor of the config; 1 leaves no trace in the program."""
    return x if factor == 1 else x * factor


def activate(name: str, x: jax.Array) -> jax.Array:
    """The activation function of a config; that of `swiglu` is SiLU."""
    if name == "gelu_tanh":
        return jax.nn.gelu(x, approximate=True)
    y = x.astype(jnp.float32)
    if name == "gelu":  # on CPU, erf is cheaper than the library's erfc
        y = 0.5 * y * (1 + jax.lax.erf(y * 0.5**0.5))
    elif name == "swiglu":
        y = y * jax.nn.sigmoid(y)
    else:  # a TPU fuses the gradient of nn.relu, a select, into products; that of a maximum not
        y = jax.nn.relu(y) ** {"relu": 1, "relu2": 2}[name]
    return y.astype(x.dtype)


class Embedding(nnx.Module):
    """A vector for each of `rows` ids."""

    def __init__(self, rows: int, d_model: int, *, rngs: nnx.Rngs):
        shape = (rows, d_model)
        self.embedding = nnx.Param(INIT_STD * _normal(rngs, shape))

    def __call__(self, ids_BT: jax.Array) -> jax.Array:
        spec = P(*jax.typeof(ids_BT).sharding.spec, None)
        return self.embedding[...].at[ids_BT].get(out_sharding=spec)


class Projection(nnx.Module):
    """A linear map of each token given by an equation, e.g. `ND,DF->NF`, and sizes by letter."""

    def __init__(
        self, equation: str, sizes: dict[str, int], std: float, bias: bool, rngs: nnx.Rngs
    ):
        weight_letters, out_letters = equation.split(",")[1].split("->")
        kernel_shape = [sizes[letter] for letter in weight_letters]
        bias_shape = [sizes[letter] for letter in out_letters[1:]]
        self.equation = equation
        self.kernel = nnx.Param(std * _normal(rngs, kernel_shape))
        self.bias = nnx.Param(jnp.zeros(bias_shape, jnp.float32)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        return linear(
            self.equation, x, self.kernel[...], None if self.bias is None else self.bias[...]
        )


def reduced_like(x: jax.Array, w: jax.Array) -> jax.Array:
    """`w`, if it is `reduced`, reduced over all axes that split `x`.

    Devices that share a gain but not the heads have each a summand of its gradient.
    """
    spec, axes = jax.typeof(w).sharding.spec, set(axes_of(jax.typeof(x).sharding.spec))
    if not spec.reduced or axes <= spec.reduced:
        return w
    return jax.reshard(w, P(*spec.partitions, reduced=spec.reduced | axes))


class Norm(nnx.Module):
    """Layer norm, or RMS norm, of the last dimension; returns the dtype of its input.

    Statistics, gain and bias are float32.
    """

    def __init__(self, c: ModelConfig, size: int, bias: bool):
        self.is_rms, self.epsilon = c.norm == "rms", c.norm_epsilon
        self.scale = nnx.Param(jnp.ones(size, jnp.float32)) if c.norm_gain else None
        has_bias = bias and c.norm_gain and not self.is_rms
        self.bias = nnx.Param(jnp.zeros(size, jnp.float32)) if has_bias else None

    @jax.named_scope("norms")
    def __call__(self, x_D: jax.Array) -> jax.Array:
        x = x_D.astype(jnp.float32)
        if not self.is_rms:
            mean = checkpoint_name(jnp.mean(x, axis=-1, keepdims=True), "norm_mean")
        # Both means in one pass; rounding may leave the difference just below zero.
        variance = checkpoint_name(jnp.mean(x * x, axis=-1, keepdims=True), "norm_square")
        if not self.is_rms:
            variance = jnp.maximum(variance - mean * mean, 0)
            x = x - mean
        normed = x * jax.lax.rsqrt(variance + self.epsilon)
        if self.scale is not None:
            # An einsum: explicit sharding refuses to multiply a `reduced` vector elementwise.
            normed = jnp.einsum("...D,D->...D", normed, reduced_like(x_D, self.scale[...]))
        if self.bias is not None:
            normed = add_bias(normed, self.bias[...])
        return normed.astype(x_D.dtype)


def _normal(rngs: nnx.Rngs, shape: Sequence[int]) -> jax.Array:
    """Float32, whatever JAX_ENABLE_X64 says."""
    return jax.random.normal(rngs.params(), shape, jnp.float32)
