"""Specs of the states of many optimizers, on real arrays over 32 devices."""

import ast
import math

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.sharding import (
    axes_of,
    make_mesh,
    optimizer_specs,
    paths_and_leaves,
    place,
    shard_shape,
)

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


def test_factors_have_the_entries_of_their_dimensions():
    """Also where the two largest are equal, and a row comes before what is derived."""
    params = PARAMS | {"square": jnp.ones((256, 256))}
    specs = place((*RULES, ("square", ("data", "tensor"))), params, "zero", SIZES).optimizer
    found = dict(paths_and_leaves(optimizer_specs(adafactor(), params, specs, FACTORED[:1])))
    assert {path: P(*spec) for path, spec in FACTORED}.items() <= found.items()
    assert (found["0/v_row/square"], found["0/v_col/square"]) == (P("data"), P("tensor"))
    row = (FACTORED[0][0], (None,))
    assert optimizer_specs(adafactor(), params, specs, (row,))[0].v_row["embed"]["embedding"] == P(
        None
    )


def test_state_of_another_shape_is_named_with_its_parameter():
    """A projection onto fewer dimensions, as in GaLore."""

    def init(params):
        return optax.TraceState(jax.tree.map(lambda leaf: jnp.zeros((leaf.shape[0], 5)), params))

    tx = optax.GradientTransformation(init, lambda updates, state, _: (updates, state))
    with pytest.raises(ConfigError) as error:
        optimizer_specs(tx, PARAMS, SPECS)
    assert len(error.value.problems) == 3
    message = str(error.value)
    assert "trace/embed/embedding=(512, 5): state of embed/embedding, but not of its" in message
    assert (
        "pass optimizer_specs rules with a row ('trace/embed/embedding', (None, None))" in message
    )


@pytest.mark.parametrize("tx", [optax.contrib.muon(1e-3), optax.contrib.sophia(1e-3)])
def test_small_state_of_no_parameter_is_replicated(tx):
    """Muon's three coefficients in optax, and Sophia's key; a row may say it too."""
    small = {
        path: spec
        for path, spec in paths_and_leaves(optimizer_specs(tx, PARAMS, SPECS))
        if path.endswith(("ns_coeffs", "key"))
    }
    assert set(map(axes_of, small.values())) == {()}
    (path,) = small
    optimizer_specs(tx, PARAMS, SPECS, ((path, tuple(small[path])),))


def test_large_state_of_no_parameter_needs_a_row():
    tx = optax.stateless(lambda updates, _: updates)._replace(init=lambda _: jnp.zeros(1000))
    with pytest.raises(ConfigError, match=r"=\(1000,\): state of no parameter, and no rule"):
        optimizer_specs(tx, PARAMS, SPECS)


def test_state_of_another_structure():
    """A list for each parameter (SM3), a stack (L-BFGS), a tree with masked parts (Muon)."""
    found = dict(paths_and_leaves(optimizer_specs(optax.sm3(1e-3), PARAMS, SPECS)))
    up = [found[f"0/mu/blocks/up/kernel/{dim}"] for dim in range(3)]
    assert up == [P(None), P("data"), P("tensor")]
    found = dict(paths_and_leaves(optimizer_specs(optax.lbfgs(1e-3), PARAMS, SPECS)))
    assert found["0/diff_params_memory/embed/embedding"] == P(None, "tensor", "data")
    dimensions = jax.tree.map(
        lambda leaf: optax.contrib.MuonDimensionNumbers() if leaf.ndim == 2 else None, PARAMS
    )
    tx = optax.contrib.muon(1e-3, muon_weight_dimension_numbers=dimensions)
    found = dict(paths_and_leaves(optimizer_specs(tx, PARAMS, SPECS)))
    moments = {path: spec for path, spec in found.items() if "/mu/" in path}
    assert P("tensor", "data") in moments.values()
    for path, spec in moments.items():
        (owner,) = (p for p, _ in paths_and_leaves(PARAMS) if path.endswith(p))
        assert spec == dict(paths_and_leaves(SPECS))[owner]


OF_OPTAX = (
    "adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan amsgrad fromage lamb lars "
    "lbfgs lion nadam nadamw novograd optimistic_adam_v2 optimistic_gradient_descent polyak_sgd "
    "radam rmsprop rprop sgd sign_sgd signum sm3 yogi acprop ademamix adopt cocob dadapt_adamw dog "
    "dowg galore madgrad momo momo_adam muon prodigy schedule_free_adamw schedule_free_sgd "
    "simplified_ademamix sophia"
)
SHAPES = {
    "w": jax.ShapeDtypeStruct((256, 512), jnp.float32),
    "stack": [jax.ShapeDtypeStruct((3, 128, 256), jnp.float32)],
    "b": jax.ShapeDtypeStruct((512,), jnp.float32),
    "scale": jax.ShapeDtypeStruct((), jnp.float32),
}


def test_every_optimizer_of_optax_is_placed_or_refused_with_rows_to_write():
    """Refused is only what no shape tells: GaLore's projections."""
    rows = (("w", ("fsdp", "tp")), ("stack/0", (None, "fsdp", "tp")), ("b", ("tp",)))
    sizes = {"fsdp": 4, "tp": 2}
    specs = place(rows, SHAPES, "zero", sizes).optimizer
    refused = {}
    for name in OF_OPTAX.split():
        tx = getattr(optax, name, None) or getattr(optax.contrib, name)
        tx = tx() if name == "cocob" else tx(1e-3)
        written: tuple = ()
        try:
            placed = optimizer_specs(tx, SHAPES, specs)
        except ConfigError as error:
            refused[name] = len(error.problems)
            texts = [problem.remedy.partition("with a row ")[2] for problem in error.problems]
            written = tuple(map(ast.literal_eval, texts))
            placed = optimizer_specs(tx, SHAPES, specs, written)
        state = jax.eval_shape(tx.init, SHAPES)
        assert jax.tree.structure(state) == jax.tree.structure(placed), name
        for (path, leaf), spec in zip(
            paths_and_leaves(state), jax.tree.leaves(placed), strict=True
        ):
            shard_shape(leaf.shape, spec, sizes)  # of the same rank
            if math.prod(leaf.shape) > 64 and path not in dict(written):
                assert axes_of(spec), (name, path)
    assert refused == {"galore": 3}


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (((".*/mu/.*", (None,)),), "rule 0='.*/mu/.*': matches no parameter"),
        ((*FACTORED[:3], (FACTORED[3][0], ("tensor",))), "has rank 1, and the tensor rank 2"),
    ],
)
def test_rules_without_effect_or_of_another_rank_are_refused(rules, words):
    with pytest.raises(ConfigError) as error:
        optimizer_specs(adafactor(), PARAMS, SPECS, rules)
    assert words in str(error.value)
