"""The tables for our GPT. A user's config may carry its own, as plain tuples.

A row is a regex, the letters of the dimensions, and a spec, which names every mesh axis over which
the parameter may ever be split; a layout keeps some of them. The letters: L layers, V vocabulary,
T positions, D model, C query, key and value, H heads, K head size, F feed-forward.
"""

from __future__ import annotations

from gpt_pjit.core.sharding.rules import Rules

GPT = (
    (r"embed/embedding", "VD", ("tensor", "data")),
    (r"blocks/attention/qkv/kernel", "LDCHK", (None, "data", None, "tensor", None)),
    (r"blocks/attention/out/kernel", "LHKD", (None, "tensor", None, "data")),
    (r"blocks/mlp/up/kernel", "LDF", (None, "data", "tensor")),
    (r"blocks/mlp/down/kernel", "LFD", (None, "tensor", "data")),
    (r"blocks/norm_(attention|mlp)/scale", "LD", (None, None)),  # replicated: 0.01 % of the model
    (r"norm_final/scale", "D", (None,)),  # replicated
)
LEARNED_POSITIONS = ((r"positions/embedding", "TD", (None, "data")),)
BIASES = (
    (r"blocks/attention/qkv/bias", "LCHK", (None, None, "tensor", None)),
    (r"blocks/mlp/up/bias", "LF", (None, "tensor")),
    (r"blocks/(attention/out|mlp/down|norm_(attention|mlp))/bias", "LD", (None, None)),
    (r"norm_final/bias", "D", (None,)),
)

# Matrices are decayed and multiplied in the compute dtype; gains and biases are neither.
MATRICES = (
    (r".*/(kernel|embedding)", True),
    (r".*/scale", False),
)
MATRICES_AND_BIASES = (*MATRICES, (r".*/bias", False))


def gpt_rules(*, bias: bool, positions: str) -> Rules:
    """The sharding table of a GPT with or without biases and learned positions."""
    return tuple((regex, spec) for regex, _, spec in _gpt_rows(bias, positions))


def gpt_dimensions(*, bias: bool, positions: str) -> Rules:
    """The letters of each parameter's dimensions, as a table for the same engine."""
    return tuple((regex, letters) for regex, letters, _ in _gpt_rows(bias, positions))


def matrix_rules(*, bias: bool) -> Rules:
    """True for matrices, False for vectors."""
    return MATRICES_AND_BIASES if bias else MATRICES


def _gpt_rows(bias: bool, positions: str) -> Rules:
    return (*GPT, *(BIASES if bias else ()), *(LEARNED_POSITIONS if positions == "learned" else ()))
