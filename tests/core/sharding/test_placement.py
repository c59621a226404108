import itertools

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.sharding import (
    LAYOUTS,
    mesh_shape,
    optimizer_specs,
    over_batch_axes,
    place,
    shard_bytes,
)

SIZES = {"replica": 1, "data": 4, "tensor": 2}
PARAMS = {
    "blocks": {"up": {"kernel": jax.ShapeDtypeStruct((3, 8, 16), jnp.float32)}},
    "embed": {"embedding": jax.ShapeDtypeStruct((32, 8), jnp.float32)},
}
RULES = (
    ("blocks/up/kernel", (None, "data", "tensor")),
    ("embed/embedding", ("tensor", "data")),
)


@pytest.mark.parametrize(
    ("layout", "kernels", "embeddings"),
    [
        ("ddp", [P(None, None, "tensor")] * 4, [P("tensor", None)] * 4),
        (
            "zero1",
            [P(None, None, "tensor")] * 2 + [P(None, "data", "tensor")] * 2,
            [P("tensor", None)] * 2 + [P("tensor", "data")] * 2,
        ),
        (
            "zero",
            [P(None, "data", "tensor"), P(None, None, "tensor")] + [P(None, "data", "tensor")] * 2,
            [P("tensor", "data"), P("tensor", None)] + [P("tensor", "data")] * 2,
        ),
        (
            "fsdp",
            [P(None, "data", "tensor")] * 4,
            [P("tensor", "data"), P("tensor", None)] + [P("tensor", "data")] * 2,
        ),
    ],
)
def test_the_four_trees_of_each_layout(layout, kernels, embeddings):
    placement = place(RULES, PARAMS, layout, SIZES)
    trees = (placement.stored, placement.compute, placement.gradients, placement.optimizer)
    assert [tree["blocks"]["up"]["kernel"] for tree in trees] == kernels
    assert [tree["embed"]["embedding"] for tree in trees] == embeddings


def test_layout_names_are_those_the_config_knows():
    from gpt_pjit.core.validation import CHOICES

    assert tuple(LAYOUTS) == CHOICES["partition.layout"]


def test_tuples_of_axes_lose_only_the_dropped_axis():
    rules = (RULES[0], ("embed/embedding", (("tensor", "data"), None)))
    placement = place(rules, PARAMS, "zero", SIZES)
    assert placement.stored["embed"]["embedding"] == P(("tensor", "data"), None)
    assert placement.compute["embed"]["embedding"] == P("tensor", None)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (("data",), "has rank 1, and the tensor rank 2"),
        (("data", "model"), "unknown mesh axis 'model'"),
        (("data", "data"), "names 'data' twice"),
        ((None, ("data", "tensor", "data")), "names 'data' twice"),
        ("data", "is not a spec; write a tuple with None, an axis, or a tuple of axes"),
        (("data", 3), "is not a spec"),
        (({}, None), "is not a spec"),
        ((("data", ("tensor",)), None), "is not a spec"),
    ],
)
def test_wrong_specs_name_parameter_rule_and_remedy(spec, words):
    with pytest.raises(ConfigError) as error:
        place((RULES[0], ("embed/.*", spec)), PARAMS, "zero", SIZES)
    assert words in str(error.value)
    assert "embed/embedding (rule 1 'embed/.*')" in str(error.value)


def test_indivisible_dimension_gives_sizes_that_work():
    params = PARAMS | {"embed": {"embedding": jax.ShapeDtypeStruct((50257, 8), jnp.float32)}}
    with pytest.raises(ConfigError) as error:
        place(RULES, params, "zero", SIZES)
    assert "dimension 0 of shape (50257, 8) is 50257, not divisible by 2" in str(error.value)
    assert "try 50256 or 50258" in str(error.value)


def test_reduced_marks_the_batch_axes_that_a_spec_does_not_split():
    assert over_batch_axes(P(None, "tensor"), kind="reduced") == P(
        None, "tensor", reduced={"replica", "data"}
    )
    assert over_batch_axes(P("data"), kind="unreduced") == P("data", unreduced={"replica"})


def test_optimizer_state_inherits_the_parameters_spec():
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    specs = place(RULES, PARAMS, "zero", SIZES).optimizer
    state = optimizer_specs(tx, PARAMS, specs)
    adam = state[1][0]
    assert adam.mu == adam.nu == specs
    assert adam.count == P()


def test_shard_bytes():
    assert shard_bytes(PARAMS["embed"]["embedding"], P("tensor", "data"), SIZES) == 32 * 8 * 4 // 8


def test_gpt_tables_cover_every_variant():
    from gpt_pjit.config import ModelConfig
    from gpt_pjit.core.model import param_shapes
    from gpt_pjit.core.parameters import gpt_rules

    words = {
        "n_kv_heads": (0, 1),
        "bias": ("none", "qkv", "all"),
        "norm": ("layer", "rms"),
        "norm_gain": (True, False),
        "qk_norm": (False, True),
    }
    for values in itertools.product(*words.values()):
        model = dict(zip(words, values, strict=True))
        for others in ({}, {"positions": "learned", "activation": "swiglu", "tied": False}):
            c = ModelConfig(**model, **others)
            place(gpt_rules(c), param_shapes(c, 64), "zero", SIZES)


def test_mesh_sizes():
    assert mesh_shape(1, -1, 1, 32) == (1, 32, 1)
    assert mesh_shape(2, -1, 4, 32) == (2, 4, 4)
    with pytest.raises(ConfigError, match="multiply to 3, which does not divide 32 devices"):
        mesh_shape(1, -1, 3, 32)
    with pytest.raises(ConfigError, match="multiply to 16, but there are 32 devices"):
        mesh_shape(1, 16, 1, 32)
