"""The table of the GPT: one row for every parameter.

Placement, weight decay, the compute dtype, and the names of dimensions follow from a row; how a
parameter is initialised is in its module. A config may have its own sharding table, as plain
tuples.
"""

from typing import NamedTuple

from gpt_pjit.config import ModelConfig
from gpt_pjit.core.sharding import Rules

MATRIX, VECTOR = "matrix", "vector"
Spec = tuple[str | None, ...]


class Parameter(NamedTuple):
    """A row: a regex over paths, and what is true of the parameters that it matches.

    `dimensions` are letters: L layers, V vocabulary, T positions, D model, C query, key and value,
    H heads, G heads of keys and values, K head size, F feed-forward. `spec` names every mesh axis
    over which a dimension may ever be split; a layout keeps some of them. Where the mesh does not
    divide it, `otherwise` is the spec. A matrix is decayed and multiplied in the compute dtype; a
    vector, a gain or a bias, is neither.
    """

    regex: str
    dimensions: str
    spec: Spec
    kind: str
    otherwise: Spec | None = None


EMBED = Parameter(r"embed/embedding", "VD", ("tensor", "data"), MATRIX)
HEADS = (
    Parameter(
        r"blocks/attention/qkv/kernel", "LDCHK", (None, "data", None, "tensor", None), MATRIX
    ),
)
HEAD_BIASES = (
    Parameter(r"blocks/attention/qkv/bias", "LCHK", (None, None, "tensor", None), VECTOR),
)
# Heads of keys and values that `tensor` does not divide are on all of its devices.
GROUPED_HEADS = (
    Parameter(r"blocks/attention/q/kernel", "LDHK", (None, "data", "tensor", None), MATRIX),
    Parameter(
        r"blocks/attention/kv/kernel",
        "LDCGK",
        (None, "data", None, "tensor", None),
        MATRIX,
        otherwise=(None, "data", None, None, None),
    ),
)
GROUPED_HEAD_BIASES = (
    Parameter(r"blocks/attention/q/bias", "LHK", (None, "tensor", None), VECTOR),
    Parameter(
        r"blocks/attention/kv/bias",
        "LCGK",
        (None, None, "tensor", None),
        VECTOR,
        otherwise=(None, None, None, None),
    ),
)
PROJECTIONS = (
    Parameter(r"blocks/attention/out/kernel", "LHKD", (None, "tensor", None, "data"), MATRIX),
    Parameter(r"blocks/mlp/up/kernel", "LDF", (None, "data", "tensor"), MATRIX),
    Parameter(r"blocks/mlp/down/kernel", "LFD", (None, "tensor", "data"), MATRIX),
)
GATE = Parameter(r"blocks/mlp/gate/kernel", "LDF", (None, "data", "tensor"), MATRIX)
# Replicated: 0.01 % of the model.
GAINS = (
    Parameter(r"blocks/norm_(attention|mlp)/scale", "LD", (None, None), VECTOR),
    Parameter(r"norm_final/scale", "D", (None,), VECTOR),
)
HEAD_GAINS = Parameter(r"blocks/attention/norm_[qk]/scale", "LK", (None, None), VECTOR)
UNTIED = Parameter(r"head/kernel", "VD", ("tensor", "data"), MATRIX)
LEARNED_POSITIONS = Parameter(r"positions/embedding", "TD", (None, "data"), MATRIX)
BIASES = (
    Parameter(r"blocks/mlp/(up|gate)/bias", "LF", (None, "tensor"), VECTOR),
    Parameter(r"blocks/(attention/out|mlp/down)/bias", "LD", (None, None), VECTOR),
)
NORM_BIASES = (
    Parameter(r"blocks/norm_(attention|mlp)/bias", "LD", (None, None), VECTOR),
    Parameter(r"norm_final/bias", "D", (None,), VECTOR),
)


def parameter_table(c: ModelConfig) -> tuple[Parameter, ...]:
    grouped = c.n_kv_heads not in (0, c.n_heads)
    table = [EMBED, *(GROUPED_HEADS if grouped else HEADS), *PROJECTIONS]
    table += [GATE] * (c.activation == "swiglu")
    table += [*GAINS, *[HEAD_GAINS] * c.qk_norm] * c.norm_gain
    table += [UNTIED] * (not c.tied)
    table += [LEARNED_POSITIONS] * (c.positions == "learned")
    if c.bias != "none":
        table += GROUPED_HEAD_BIASES if grouped else HEAD_BIASES
    if c.bias == "all":
        table += [*BIASES, *NORM_BIASES * (c.norm == "layer" and c.norm_gain)]
    return tuple(table)


def gpt_rules(c: ModelConfig) -> Rules:
    """(regex, spec) or (regex, spec, otherwise): the sharding table.

    `c` may be the `model` section of a config file.
    """
    return tuple(
        (row.regex, row.spec, *([row.otherwise] if row.otherwise else []))
        for row in parameter_table(c)
    )


def gpt_dimensions(c: ModelConfig) -> Rules:
    """(regex, letters): the names of each parameter's dimensions."""
    return tuple((row.regex, row.dimensions) for row in parameter_table(c))


def matrix_rules(c: ModelConfig) -> Rules:
    """(regex, bool): True for matrices, False for vectors."""
    return tuple((row.regex, row.kind == MATRIX) for row in parameter_table(c))


def flops_per_token(c: ModelConfig, n_params: int, sequence_length: int) -> int:
    """6 N + 12 A, forward and backward; recomputation is not counted.

    N counts the parameters, but an embedding that is only looked up. A sums over layers the heads
    times their size times the keys that a query sees, without the saving of causality.
    """
    sizes, windows = c.sizes, c.windows or (0,)
    multiplied = n_params - (0 if c.tied else sizes["V"] * sizes["D"])
    keys = sum(min(window or sequence_length, sequence_length) for window in windows)
    attended = c.n_layers * keys // len(windows) * sizes["H"] * sizes["K"]
    return 6 * multiplied + 12 * attended
