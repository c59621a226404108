"""Bytes by group against arrays that lie on devices; remedies that hold."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from gpt_pjit.config import replaced
from gpt_pjit.plan.compile import find_topology
from gpt_pjit.plan.cost import HEADROOM, fits, memory_of, remedies, tree_groups
from tests.helpers import load_config, program_on, tiny
from tests.plan.conftest import LAYOUTS


def placed(leaf, sharding):
    return jax.device_put(np.zeros(leaf.shape, leaf.dtype), sharding)


def held(tree, device):
    """Bytes that the arrays of a tree take on one device."""
    return sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
        if shard.device == device
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_groups_are_what_arrays_take(layout):
    config = tiny(partition={"layout": layout}, mesh={"tensor": 2})
    program = program_on(config, (1, 4, 2))
    groups = tree_groups(config, 8)
    with jax.set_mesh(program.mesh):
        shapes = jax.eval_shape(program.model.gather_weights, program.state.params)
    specs = jax.tree.map(
        lambda spec: NamedSharding(program.mesh, spec), program.model.placement.compute
    )
    state = jax.tree.map(lambda leaf: placed(leaf, leaf.sharding), program.state)
    weights = jax.tree.map(placed, shapes, specs)
    device = jax.devices()[0]
    assert groups["master weights"] == held(state.params, device)
    assert groups["optimizer"] == held((state.opt_state, state.step), device)
    assert groups["gathered weights"] == held(weights, device)
    assert groups["gradients"] == held(weights, device)  # float32 here, and split alike


def billions():
    """A 6B model."""
    fields = {"n_layers": 28, "d_model": 4096, "d_ff": 16384, "n_heads": 32}
    return replaced(load_config("580m"), {f"model.{n}": v for n, v in fields.items()})


def test_too_big_a_model_is_told_what_would_fit():
    (remedy,) = remedies(billions(), find_topology("v3-8"))
    topology, *overrides = remedy.split()
    pairs = (override.removeprefix("--config.").split("=") for override in overrides)
    fields = {name: int(value) if value.isdigit() else value for name, value in pairs}
    config = replaced(billions(), fields)
    memory = memory_of(config, find_topology(topology.removeprefix("--topology=")), None)
    assert fits(memory, HEADROOM)


def test_activations_alone_ask_for_smaller_microbatches():
    config = replaced(load_config("580m"), {"model.remat": "none", "optim.microbatches": 2})
    remedy, *_ = remedies(config, find_topology("v3-32"))
    assert remedy.startswith("--config.optim.microbatches=")


def test_a_model_for_no_chip_of_the_family():
    config = replaced(billions(), {"model.n_layers": 28_000})
    (remedy,) = remedies(config, find_topology("v3-8"))
    assert "a smaller model" in remedy
