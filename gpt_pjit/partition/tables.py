"""The tables for our GPT. A user's config may carry its own, as plain tuples.

A spec names every mesh axis over which a parameter may ever be split; a layout keeps some of them.
Dimensions: L layers, V vocabulary, T positions, D model, H heads, K head size, F feed-forward; the
3 of `qkv` is query, key, value.
"""

from __future__ import annotations

from gpt_pjit.partition.rules import Rules

GPT = (
    (r"embed/embedding", ("tensor", "data")),  # [V, D]
    (r"blocks/attention/qkv/kernel", (None, "data", None, "tensor", None)),  # [L, D, 3, H, K]
    (r"blocks/attention/out/kernel", (None, "tensor", None, "data")),  # [L, H, K, D]
    (r"blocks/mlp/up/kernel", (None, "data", "tensor")),  # [L, D, F]
    (r"blocks/mlp/down/kernel", (None, "tensor", "data")),  # [L, F, D]
    (r"blocks/norm_(attention|mlp)/scale", (None, None)),  # [L, D], replicated: 0.01 % of the model
    (r"norm_final/scale", (None,)),  # [D], replicated
)
LEARNED_POSITIONS = ((r"positions/embedding", (None, "data")),)  # [T, D]
BIASES = (
    (r"blocks/attention/qkv/bias", (None, None, "tensor", None)),  # [L, 3, H, K]
    (r"blocks/mlp/up/bias", (None, "tensor")),  # [L, F]
    (r"blocks/(attention/out|mlp/down|norm_(attention|mlp))/bias", (None, None)),  # [L, D]
    (r"norm_final/bias", (None,)),  # [D]
)

# Matrices are decayed and multiplied in the compute dtype; gains and biases are neither.
MATRICES = (
    (r".*/(kernel|embedding)", True),
    (r".*/scale", False),
)
MATRICES_AND_BIASES = (*MATRICES, (r".*/bias", False))


def gpt_rules(*, bias: bool, positions: str) -> Rules:
    """The sharding table of a GPT with or without biases and learned positions."""
    return (*GPT, *(BIASES if bias else ()), *(LEARNED_POSITIONS if positions == "learned" else ()))


def matrix_rules(*, bias: bool) -> Rules:
    """True for matrices, False for vectors."""
    return MATRICES_AND_BIASES if bias else MATRICES
