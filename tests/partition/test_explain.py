"""What `explain` says is what a run has: bytes to the byte, collectives to the byte."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec as P

from gpt_pjit.config import ModelConfig
from gpt_pjit.core.model import param_shapes
from gpt_pjit.core.parameters import gpt_dimensions, gpt_rules
from gpt_pjit.core.sharding import (
    LAYOUTS,
    axes_of,
    match_rules,
    mesh_shape,
    paths_and_leaves,
    values,
)
from gpt_pjit.partition import COLLECTIVES, TREES, explain_config
from tests.helpers import BLOCKS, equations, load_config, program_on, tiny

CONFIG_580M = load_config("580m")


def part(record, path, tree):
    return record["parameters"][path]["trees"][tree]


def device_bytes(leaf):
    """Bytes on the fullest device of an array really placed there."""
    zeros = jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
    return max(shard.data.nbytes for shard in zeros.addressable_shards)


def test_580m_bytes_are_those_of_real_arrays_on_32_devices():
    """One tensor at a time: the stored parameters and Adam's first moments of `zero`."""
    record = explain_config(CONFIG_580M, 32)
    state = program_on(CONFIG_580M, (1, 32, 1)).state
    for path, leaf in paths_and_leaves(state.params):
        assert device_bytes(leaf) == part(record, path, "stored")["bytes"], path
    adam = state.opt_state[1][0]
    for path, leaf in paths_and_leaves(adam.mu):
        assert 2 * device_bytes(leaf) == part(record, path, "optimizer")["bytes"], path
    stored = 586_874_880 * 4 // 32 + 37 * 1536 * 4  # matrices in 32 parts, vectors whole
    assert record["bytes_a_device"]["stored"] == stored
    assert record["bytes_a_device"]["optimizer"] == 2 * stored + 3 * 4  # and three step counters


@pytest.mark.parametrize("layout", [pytest.param("zero1", marks=pytest.mark.slow), "fsdp"])
def test_stored_and_optimizer_bytes_are_the_arguments_of_the_compiled_step(layout):
    config = tiny(partition={"layout": layout}, mesh={"tensor": 2}, model={"bias": "all"})
    program = program_on(config, (1, 4, 2))
    with jax.set_mesh(program.mesh):
        compiled = program.train_step.lower(program.state, program.tokens).compile()
    arguments = compiled.memory_analysis().argument_size_in_bytes
    tokens = math.prod(program.tokens.sharding.shard_shape(program.tokens.shape)) * 4
    held = explain_config(config, 8)["bytes_a_device"]
    assert held["stored"] + held["optimizer"] == arguments - tokens


def test_compute_bytes_are_in_the_compute_dtype():
    record = explain_config(CONFIG_580M, 32)
    assert part(record, "embed/embedding", "compute")["bytes"] == 50304 * 1536 * 2
    assert part(record, "norm_final/scale", "compute")["bytes"] == 1536 * 4


def test_replication_is_told_by_rule():
    rules = explain_config(CONFIG_580M, 32)["rules"]
    replicated = {r["regex"]: r["replicated_bytes"] for r in rules if r["replicated_bytes"]}
    assert replicated == {
        "blocks/norm_(attention|mlp)/scale": 2 * 5 * 4 * 18 * 1536,
        "norm_final/scale": 5 * 4 * 1536,
    }


@pytest.mark.parametrize("block", BLOCKS)
def test_letters_name_the_dimensions(block):
    fields = {"n_layers": 4, "n_heads": 6, "head_size": 8, "d_model": 40}
    fields |= {"d_ff": 70, "vocab_size": 100}
    config = tiny(model=BLOCKS[block] | fields, data={"sequence_length": 9})
    sizes = {"L": 4, "H": 6, "D": 40, "K": 8, "F": 70, "V": 100, "T": 9}
    sizes |= {"G": config.model.n_kv_heads, "C": 2 if config.model.n_kv_heads else 3}
    params = param_shapes(config.model, 9)
    letters = values(match_rules(gpt_dimensions(config.model), params))
    for (path, leaf), names in zip(paths_and_leaves(params), jax.tree.leaves(letters), strict=True):
        assert leaf.shape == tuple(sizes[letter] for letter in names), path


ALTERNATIVES = (
    ("embed/embedding", ("tensor", "data"), ("data", None), (None, "data"), (None, None)),
    *gpt_rules(ModelConfig())[1:],
)


def test_the_first_alternative_that_divides_is_taken():
    config = tiny(model={"vocab_size": 501}, partition={"rules": ALTERNATIVES}, mesh={"tensor": 2})
    embed = explain_config(config, 8)["parameters"]["embed/embedding"]
    assert embed["rule"] == {"number": 0, "spec": 2}
    assert embed["trees"]["stored"]["shape"] == [501, 16]


# Collectives: every reshard in the step's own program, weighed by the formulas of a ring.


def reshards(jaxpr):
    """(times run, source, target) of every reshard between explicit shardings."""
    for times, equation in equations(jaxpr):
        if equation.primitive.name == "reshard":
            source, target = equation.invars[0].aval, equation.outvars[0].aval
            if set(target.sharding.mesh.axis_types) == {AxisType.Explicit}:
                yield times, source, target


def bytes_moved(source, target, sizes):
    """(gathered, reduced) bytes through a device of one reshard."""
    before, after = source.sharding.spec, target.sharding.spec
    old, new = (set(axes_of(P(*spec.partitions))) for spec in (before, after))
    lost, won = old - new, new - old
    summed = set(before.unreduced) - set(after.unreduced)
    local = math.prod(source.sharding.shard_shape(source.shape)) * source.dtype.itemsize
    n = math.prod(sizes[axis] for axis in lost)
    scattered = math.prod(sizes[axis] for axis in summed & won)
    others = math.prod(sizes[axis] for axis in summed - won)
    reduced = local * (scattered - 1) // scattered
    return local * (n - 1), reduced + 2 * local // scattered * (others - 1) // others


@pytest.mark.parametrize(
    ("layout", "remat", "microbatches", "mesh"),
    [
        ("ddp", "none", 2, (2, 4, 1)),
        ("zero1", "full", 2, (1, 8, 1)),
        ("zero", "selective", 4, (2, 4, 1)),
        ("fsdp", "none", 2, (2, 4, 1)),
        ("fsdp", "full", 4, (1, 8, 1)),
        ("fsdp", "selective", 1, (2, 4, 1)),
    ],
)
def test_what_moves_is_what_the_step_reshards(layout, remat, microbatches, mesh):
    config = tiny(
        model={"dtype": "bfloat16", "n_layers": 3, "remat": remat},
        optim={"microbatches": microbatches},
        mesh={"replica": mesh[0]},
        partition={"layout": layout},
    )
    program = program_on(config, mesh)
    with jax.set_mesh(program.mesh):
        jaxpr = jax.make_jaxpr(program.train_step)(program.state, program.tokens)
    found = {"gather": [0, 0], "reduce": [0, 0]}  # once, in loops
    for times, source, target in reshards(jaxpr.jaxpr):
        gathered, reduced = bytes_moved(source, target, program.mesh.shape)
        found["gather"][times > 1] += gathered * times
        found["reduce"][times > 1] += reduced * times
    moved = explain_config(config, 8)["bytes_moved_a_step"]
    assert tuple(moved) == COLLECTIVES
    weights, in_layers, scattered, reduced, returned = moved.values()
    assert found == {"gather": [weights + returned, in_layers], "reduce": [reduced, scattered]}
    assert reduced > 0
    assert (in_layers > 0) == (layout == "fsdp")


def test_trees_and_layouts_cover_the_same_four():
    assert tuple(LAYOUTS["zero"].__dataclass_fields__) == TREES
    assert mesh_shape(1, -1, 1, 32) == (1, 32, 1)
