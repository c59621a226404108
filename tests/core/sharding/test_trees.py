"""The engine is no friend of any one tree: what README and docs promise for trees of users."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.sharding import match_rules, paths_and_leaves, place, values
from gpt_pjit.partition import lint, why

SIZES = {"data": 4, "tensor": 2}


@jax.tree_util.register_dataclass
@dataclass
class Layer:
    kernel: jax.Array
    bias: jax.Array


class Pair(NamedTuple):
    encoder: Layer
    decoder: Layer


def layer():
    return Layer(jax.ShapeDtypeStruct((8, 16), jnp.float32), np.zeros(16, np.float32))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(8, 16, rngs=rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(16, use_bias=False, rngs=rngs)


LAYER_RULES = ((r".*kernel", ("data", "tensor")), (r".*bias", ("tensor",)))
TREES = {
    "dataclass": (layer(), {"kernel", "bias"}),
    "NamedTuple": (
        Pair(layer(), layer()),
        {f"{side}/{name}" for side in Pair._fields for name in ("kernel", "bias")},
    ),
    "list in a dict": (
        {"layers": [layer(), layer()]},
        {f"layers/{i}/{name}" for i in range(2) for name in ("kernel", "bias")},
    ),
    "tuple": ((layer(),), {"0/kernel", "0/bias"}),
}


@pytest.mark.parametrize("name", TREES)
def test_trees_of_every_kind_keep_their_structure(name):
    tree, paths = TREES[name]
    assert {path for path, _ in paths_and_leaves(tree)} == paths
    placement = place(LAYER_RULES, tree, "zero", SIZES)
    assert jax.tree.structure(placement.stored) == jax.tree.structure(tree)
    for path, spec in paths_and_leaves(placement.stored):
        assert spec == (P("data", "tensor") if path.endswith("kernel") else P("tensor"))


def test_nnx_state():
    state = nnx.state(nnx.eval_shape(lambda: Net(nnx.Rngs(0))), nnx.Param)
    rules = (*LAYER_RULES, ("norm/scale", (None,)))
    pure = nnx.to_pure_dict(state)
    assert {path for path, _ in paths_and_leaves(pure)} == {
        "layers/0/kernel",
        "layers/0/bias",
        "layers/1/kernel",
        "layers/1/bias",
        "norm/scale",
    }
    assert place(rules, pure, "zero", SIZES).compute["layers"][0]["kernel"] == P(None, "tensor")
    wrapped = [(rf"{regex}/value", spec) for regex, spec in rules]
    placement = place(wrapped, state, "fsdp", SIZES, scanned="layers/")
    kernels = [s for path, s in paths_and_leaves(placement.compute) if "kernel" in path]
    assert kernels == [P("data", "tensor")] * 2


def test_a_bare_array_has_the_empty_path():
    assert values(match_rules((("", 3),), np.zeros(2))) == 3


def test_scalars_take_an_empty_spec():
    tree = {"scale": np.float32(1.0), "w": np.zeros(4, np.float32)}
    placement = place((("scale", ()), ("w", ("data",))), tree, "zero", SIZES)
    assert placement.stored == {"scale": P(), "w": P("data")}


def test_meshes_may_have_any_axes_and_tables_any_values():
    tree = TREES["dataclass"][0]
    findings = lint(((".*", ("model",)),), tree, {"model": 2})
    assert [finding.kind for finding in findings] == ["rank"]
    assert values(match_rules(((".*kernel", "wide"), (".*", "narrow")), tree)).bias == "narrow"


def test_why_works_while_the_rest_of_the_table_is_wrong():
    tree = TREES["list in a dict"][0]
    rules = (
        ("kernel", ("data", None)),
        (r"layers/\d+/kernel", ("data", None)),
        (".*", (None, None)),
    )
    trials = why(rules, tree, "layers/0/kernel", SIZES)
    assert [trial.verdict for trial in trials] == ["near miss", "taken", "too late"]
    assert "all of it: .*kernel" in trials[0].reason
    assert "rule 1 comes first" in trials[2].reason
    with pytest.raises(ConfigError, match="did you mean layers/0/kernel"):
        why(rules, tree, "layers/0/kernle", SIZES)
