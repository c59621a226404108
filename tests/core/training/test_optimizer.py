"""Optimizer, weight decay and learning rate by parameter, from tables of the config."""

import jax
import numpy as np
import optax
import pytest

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.model import param_shapes
from gpt_pjit.core.sharding import paths_and_leaves
from gpt_pjit.core.training import learning_rate
from gpt_pjit.core.training.optimizer import make_optimizer
from tests.helpers import program_on, run_steps, tiny

ALL = (".*", 1.0)
FREEZE_FIRST = (("blocks/.*", (0.0, 1.0)), ALL)


def updates_of(config, tx=None, steps=3):
    """The updates of a few compiled steps from random parameters on random gradients."""
    shapes, rng = param_shapes(config.model, 32), np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    tx = tx or make_optimizer(config, params)
    state, update, history = tx.init(params), jax.jit(tx.update), []
    for _ in range(steps):
        gradient = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
        updates, state = update(gradient, state, params)
        params = jax.device_get(optax.apply_updates(params, updates))
        history.append(updates)
    return history


def test_without_tables_it_is_optax_adamw_to_the_bit():
    config = tiny(model={"bias": "all"})
    c = config.optim
    tx = optax.chain(
        optax.clip_by_global_norm(c.clip_norm),
        optax.adamw(
            learning_rate(c),
            b1=c.b1,
            b2=c.b2,
            weight_decay=c.weight_decay,
            mask=lambda params: jax.tree_util.tree_map_with_path(
                lambda path, _: path[-1].key in ("kernel", "embedding"), params
            ),
        ),
    )
    jax.tree.map(np.testing.assert_array_equal, updates_of(config), updates_of(config, tx))


def test_a_table_that_says_the_default_changes_nothing():
    rules = ((".*/scale", False), (".*", True))
    same = updates_of(tiny(optim={"decay_rules": rules, "lr_rules": (ALL,)}))
    jax.tree.map(np.testing.assert_array_equal, updates_of(tiny()), same)


def test_a_table_of_adamw_alone_changes_nothing():
    same = updates_of(tiny(optim={"rules": ((".*", "adamw"),)}))
    jax.tree.map(np.testing.assert_array_equal, updates_of(tiny()), same)


LIBRARY = {
    "lion": lambda: optax.scale_by_lion(),
    "adafactor": lambda: optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)),
}


@pytest.mark.parametrize("name", LIBRARY)
def test_others_are_those_of_optax(name):
    """At a learning rate of a tenth, beside AdamW for the embedding, with decoupled decay."""
    rules = ((".*/embedding", "adamw"), (".*", (name, 1e-4)))
    sizes = {"d_model": 128, "d_ff": 128, "n_layers": 1}  # large enough to factor
    config, plain = tiny(model=sizes, optim={"rules": rules}), tiny(model=sizes)
    c = config.optim
    tx = optax.chain(
        optax.clip_by_global_norm(c.clip_norm),
        LIBRARY[name](),
        optax.add_decayed_weights(
            c.weight_decay,
            lambda params: jax.tree_util.tree_map_with_path(
                lambda path, _: path[-1].key != "scale", params
            ),
        ),
        optax.scale_by_learning_rate(lambda step: 0.1 * learning_rate(c)(step)),
    )
    found, expected, adamw = updates_of(config), updates_of(config, tx), updates_of(plain)
    # Parameters after the first step differ where the other optimizer moved them.
    for path, update in paths_and_leaves(found[0]):
        wanted = adamw if path.endswith("embedding") else expected
        np.testing.assert_allclose(update, dict(paths_and_leaves(wanted[0]))[path], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARY)
def test_losses_and_state_on_a_mesh(name):
    sizes = {"d_model": 128, "d_ff": 128, "n_layers": 1}
    config = tiny(model=sizes, optim={"rules": ((".*", name),), "warmup_steps": 1})
    program = program_on(config, (1, 4, 2))
    one = run_steps(config, program_on(config, (1, 1, 1)), 3)[1]
    state, history = run_steps(config, program, 3)
    losses = [[metrics["train/loss"] for metrics in run] for run in (one, history)]
    np.testing.assert_allclose(*losses, rtol=0, atol=1e-5)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == jax.tree.map(
        lambda leaf: leaf.sharding, program.state
    )


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (((".*", "adamm"),), "is not an optimizer; did you mean 'adamw'? known: adamw, muon"),
        (((".*", 3),), "is not an optimizer; known: adamw"),
        (((".*", ("lion", 0.0)),), "its learning rate must be above 0"),
        (((".*", ("lion", "fast")),), "its learning rate must be above 0"),
        (((".*", "lion", 1e-3),), "has several values; write a name, or one tuple"),
        (((".*", ("lion", 1e-3, 2)),), "has several values; write a name, or one tuple"),
        (((".*", ()),), "is not an optimizer"),
        (((".*/kernel", "muon"),), "parameter='embed/embedding': no rule matches it"),
        (((".*", "muon"),), "embed/embedding (rule 0 '.*')='muon': muon cannot train it: it is an"),
        (((".*", "muon"),), "embedding or head, whose rows belong to tokens"),
        (((".*", "muon"),), "it is a vector in each layer; put a row with adamw before this one"),
        (((".*", "adamw"), ("embed/.*", "lion")), "is taken by rule 0 '.*'"),
        (((".*/kernell", "lion"), (".*", "adamw")), "rule 0='.*/kernell': matches no parameter"),
    ],
)
def test_mistakes_in_the_choice(rules, words):
    config = tiny(optim={"rules": rules})
    with pytest.raises(ConfigError) as error:
        make_optimizer(config, param_shapes(config.model, 32))
    assert words in str(error.value)
    assert {finding.table for finding in error.value.problems} == {"optim.rules"}


def test_decay_is_multiplied():
    config = tiny(
        optim={
            "decay_rules": ((".*/embedding", 2.0), ("blocks/mlp/.*", (0.0, 3)), (".*", False)),
            "warmup_steps": 0,
            "peak_lr": 0.5,
        }
    )
    params = jax.tree.map(lambda s: np.ones(s.shape, np.float32), param_shapes(config.model, 32))
    tx = make_optimizer(config, params)
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = jax.jit(tx.update)(zeros, tx.init(params), params)
    expected = {"embed/embedding": [-0.1], "blocks/mlp/up/kernel": [0.0, -0.15]}
    expected["blocks/mlp/down/kernel"] = expected["blocks/mlp/up/kernel"]
    for path, update in paths_and_leaves(updates):
        of_layers = np.asarray(update).reshape(len(expected.get(path, [0])), -1)
        np.testing.assert_allclose(of_layers.min(axis=1), expected.get(path, [0]), atol=1e-7)
        np.testing.assert_allclose(of_layers.max(axis=1), expected.get(path, [0]), atol=1e-7)


def test_a_frozen_block_does_not_move_and_the_rest_does():
    """On a mesh, in the layout that splits every tree, with decay on."""
    config = tiny(
        optim={"lr_rules": FREEZE_FIRST, "decay_rules": (ALL,)}, partition={"layout": "fsdp"}
    )
    program = program_on(config, (1, 4, 2))
    with jax.set_mesh(program.mesh):
        start = jax.device_get(program.init(jax.random.key(config.seed)).params)
    state, _ = run_steps(config, program, 2)
    for path, after in paths_and_leaves(jax.device_get(state.params)):
        before = dict(paths_and_leaves(start))[path]
        moved = after != before
        if path.startswith("blocks/"):
            assert not moved[0].any(), path
            assert moved[1].any(), path
        else:
            assert moved.any(), path


@pytest.mark.slow  # of two programs, whose bits agree where both are optimised
def test_the_learning_rate_is_multiplied():
    half = updates_of(tiny(optim={"lr_rules": (("embed/.*", 0.5), ALL)}), steps=1)[0]
    full = updates_of(tiny(), steps=1)[0]
    np.testing.assert_array_equal(half["embed"]["embedding"], full["embed"]["embedding"] / 2)
    np.testing.assert_array_equal(half["norm_final"]["scale"], full["norm_final"]["scale"])


@pytest.mark.parametrize("table", ["lr_rules", "decay_rules"])
@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ((("blocks/.*", (1.0, 1.0, 1.0)), ALL), "has 3 numbers for 2 layers; write a number, or 2"),
        ((("embed/.*", (1.0,) * 512), ALL), "embed/embedding (rule 0 'embed/.*')"),
        ((("embed/.*", (1.0,) * 512), ALL), "one number for each layer, but there are none"),
        ((("embed/.*", "small"), ALL), "must be a number of at least 0"),
        ((("embed/.*", -1.0), ALL), "must be a number of at least 0"),
        ((("blocks/.*", (1.0, float("nan"))), ALL), "must be a number of at least 0"),
        ((("embed/.*", 1.0, 2.0), ALL), "has several values; write a number, or 512 numbers"),
        ((("blocks/.*", 1.0),), "parameter='embed/embedding': no rule matches it"),
        ((ALL, ("embed/.*", 1.0)), "is taken by rule 0 '.*'"),
        ((("embedd/.*", 1.0), ALL), "rule 0='embedd/.*': matches no parameter"),
    ],
)
def test_mistakes_in_the_tables(table, rules, words):
    config = tiny(optim={table: rules})
    with pytest.raises(ConfigError) as error:
        make_optimizer(config, param_shapes(config.model, 32))
    assert words in str(error.value)
    assert {finding.table for finding in error.value.problems} == {f"optim.{table}"}


def test_mistakes_of_both_tables_are_reported_at_once():
    config = tiny(optim={"lr_rules": ((".*", -1.0),), "decay_rules": ((".*", "x"),)})
    with pytest.raises(ConfigError) as error:
        make_optimizer(config, param_shapes(config.model, 32))
    assert {f.table for f in error.value.problems} == {"optim.lr_rules", "optim.decay_rules"}
