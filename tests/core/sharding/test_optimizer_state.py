"""Specs of the states of many optimizers, on real arrays over 32 devices."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.sharding import axes_of, make_mesh, optimizer_specs, paths_and_leaves, place

PARAMS = {
    "blocks": {"up": {"kernel": jnp.ones((3, 128, 256))}, "norm": {"scale": jnp.ones((3, 128))}},
    "embed": {"embedding": jnp.ones((512, 128))},
}
RULES = (
    ("blocks/up/kernel", (None, "data", "tensor")),
    ("blocks/norm/scale", (None, None)),
    ("embed/embedding", ("tensor", "data")),
)
SIZES = {"replica": 1, "data": 8, "tensor": 4}
SPECS = place(RULES, PARAMS, "zero", SIZES).optimizer
MASK = {"blocks": {"up": {"kernel": True}, "norm": {"scale": False}}, "embed": {"embedding": True}}
LABELS = jax.tree.map(lambda matrix: "adam" if matrix else "sgd", MASK)
FACTORED = (
    (r"0/v_row/embed/embedding", ("data",)),
    (r"0/v_col/embed/embedding", ("tensor",)),
    (r"0/v_row/blocks/up/kernel", (None, "data")),
    (r"0/v_col/blocks/up/kernel", (None, "tensor")),
)


def adafactor():
    return optax.adafactor(1e-3, min_dim_size_to_factor=128, momentum=0.9)


OPTIMIZERS = {
    "adamw": (optax.adamw(1e-3), ()),
    "masked decay": (optax.adamw(1e-3, mask=MASK), ()),
    "masked optimizer": (optax.masked(optax.adam(1e-3), MASK), ()),
    "lion": (optax.lion(1e-3), ()),
    "momentum": (optax.sgd(1e-2, momentum=0.9), ()),
    "plain sgd": (optax.sgd(1e-2), ()),
    "chain": (optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3), optax.ema(0.9)), ()),
    "multi_transform": (
        optax.multi_transform(
            {"adam": optax.adam(1e-3), "sgd": optax.sgd(1e-2, momentum=0.9)}, LABELS
        ),
        (),
    ),
    "MultiSteps": (optax.MultiSteps(optax.adamw(1e-3), 4), ()),
    "inject_hyperparams": (optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3), ()),
    "adafactor": (adafactor(), FACTORED),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_leaves_of_a_parameters_shape_have_its_spec_the_rest_is_small_or_written(name):
    tx, rules = OPTIMIZERS[name]
    specs = optimizer_specs(tx, PARAMS, SPECS, rules)
    spec_of, shape_of = dict(paths_and_leaves(SPECS)), dict(paths_and_leaves(PARAMS))
    mesh = make_mesh((1, 8, 4))
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    with jax.set_mesh(mesh):
        state = jax.jit(jax.sharding.auto_axes(tx.init, axes=mesh.axis_names, out_sharding=specs))(
            PARAMS
        )
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == shardings
    written = dict(rules)
    inherited = 0
    for path, leaf in paths_and_leaves(state):
        owner = next((p for p in shape_of if path.endswith(f"/{p}")), None)
        if owner and leaf.shape == shape_of[owner].shape:
            assert leaf.sharding.spec == spec_of[owner], path
            inherited += 1
        elif leaf.size > 1:
            assert leaf.sharding.spec == P(*written[path]), path
        else:
            assert not axes_of(leaf.sharding.spec), path
    assert (
        inherited
        == {
            "adamw": 6,
            "masked decay": 6,
            "masked optimizer": 4,
            "lion": 3,
            "momentum": 3,
            "plain sgd": 0,
            "chain": 9,
            "multi_transform": 5,
            "MultiSteps": 9,
            "inject_hyperparams": 6,
            "adafactor": 4,  # momentum of all three, and v of the vector
        }[name]
    )


def test_a_factored_leaf_without_a_rule_is_named_with_its_parameter():
    with pytest.raises(ConfigError) as error:
        optimizer_specs(adafactor(), PARAMS, SPECS, FACTORED[1:])
    message = str(error.value)
    assert len(error.value.problems) == 1
    assert "0/v_row/embed/embedding=(128,): state of embed/embedding, but not of its" in message
    assert "pass optimizer_specs rules with a row ('0/v_row/embed/embedding', (None,))" in message


def test_state_of_no_parameter_needs_a_rule_above_one_element():
    tx = optax.contrib.muon(1e-3)
    with pytest.raises(ConfigError, match=r"ns_coeffs=\(3,\): state of no parameter"):
        optimizer_specs(tx, PARAMS, SPECS)
    specs = optimizer_specs(tx, PARAMS, SPECS, ((".*/ns_coeffs", (None,)),))
    assert {leaf for path, leaf in paths_and_leaves(specs) if "ns_coeffs" in path} == {P(None)}


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (((".*/mu/.*", (None,)),), "rule 0='.*/mu/.*': matches no parameter"),
        ((*FACTORED[:3], (FACTORED[3][0], ("tensor",))), "has 1 entries for 2 dimensions"),
    ],
)
def test_rules_without_effect_or_of_another_rank_are_refused(rules, words):
    with pytest.raises(ConfigError) as error:
        optimizer_specs(adafactor(), PARAMS, SPECS, rules)
    assert words in str(error.value)
