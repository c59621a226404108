"""The table of the GPT: one row for every parameter.

Placement, weight decay, the compute dtype, and the names of dimensions follow from a row; how a
parameter is initialised is in its module. A config may have its own sharding table, as plain
tuples.
"""

from __future__ import annotations

from typing import NamedTuple

from gpt_pjit.config import ModelConfig
from gpt_pjit.core.sharding import Rules

MATRIX, VECTOR = "matrix", "vector"


class Parameter(NamedTuple):
    """A row: a regex over paths, and what is true of the parameters that it matches.

    `dimensions` are letters: L layers, V vocabulary, T positions, D model, C query, key and value,
    H heads, K head size, F feed-forward. `spec` names every mesh axis over which a dimension may
    ever be split; a layout keeps some of them. A matrix is decayed and multiplied in the compute
    dtype; a vector, a gain or a bias, is neither.
    """

    regex: str
    dimensions: str
    spec: tuple[str | None, ...]
    kind: str


GPT = (
    Parameter(r"embed/embedding", "VD", ("tensor", "data"), MATRIX),
    Parameter(
        r"blocks/attention/qkv/kernel", "LDCHK", (None, "data", None, "tensor", None), MATRIX
    ),
    Parameter(r"blocks/attention/out/kernel", "LHKD", (None, "tensor", None, "data"), MATRIX),
    Parameter(r"blocks/mlp/up/kernel", "LDF", (None, "data", "tensor"), MATRIX),
    Parameter(r"blocks/mlp/down/kernel", "LFD", (None, "tensor", "data"), MATRIX),
    # Replicated: 0.01 % of the model.
    Parameter(r"blocks/norm_(attention|mlp)/scale", "LD", (None, None), VECTOR),
    Parameter(r"norm_final/scale", "D", (None,), VECTOR),
)
LEARNED_POSITIONS = (Parameter(r"positions/embedding", "TD", (None, "data"), MATRIX),)
BIASES = (
    Parameter(r"blocks/attention/qkv/bias", "LCHK", (None, None, "tensor", None), VECTOR),
    Parameter(r"blocks/mlp/up/bias", "LF", (None, "tensor"), VECTOR),
    Parameter(
        r"blocks/(attention/out|mlp/down|norm_(attention|mlp))/bias", "LD", (None, None), VECTOR
    ),
    Parameter(r"norm_final/bias", "D", (None,), VECTOR),
)


def parameter_table(c: ModelConfig) -> tuple[Parameter, ...]:
    """The rows of the parameters that a model of `c` has."""
    optional = (BIASES if c.bias else ()) + (LEARNED_POSITIONS if c.positions == "learned" else ())
    return GPT + optional


def gpt_rules(c: ModelConfig) -> Rules:
    """(regex, spec): the sharding table. `c` may be the `model` section of a config file."""
    return tuple((row.regex, row.spec) for row in parameter_table(c))


def gpt_dimensions(c: ModelConfig) -> Rules:
    """(regex, letters): the names of each parameter's dimensions."""
    return tuple((row.regex, row.dimensions) for row in parameter_table(c))


def matrix_rules(c: ModelConfig) -> Rules:
    """(regex, bool): True for matrices, False for vectors."""
    return tuple((row.regex, row.kind == MATRIX) for row in parameter_table(c))
