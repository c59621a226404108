"""The placement of a config's program, without devices."""

from __future__ import annotations

import jax
from jax.sharding import use_abstract_mesh

from gpt_pjit.config import Config
from gpt_pjit.core.sharding import (
    abstract_mesh,
    gpt_dimensions,
    match_rules,
    mesh_shape,
    paths_and_leaves,
    state_bytes,
    values,
)
from gpt_pjit.core.training import build, make_optimizer
from gpt_pjit.partition.explain import Explanation, explain


def explain_config(config: Config, devices: int) -> Explanation:
    """Raises ConfigError as `build` does; the bytes are those of the arrays that `init` makes."""
    c, sizes = config.model, config.mesh
    mesh = abstract_mesh(mesh_shape(sizes.replica, sizes.data, sizes.tensor, devices))
    program = build(config, mesh)
    params, state = program.state.params, program.state.opt_state
    with use_abstract_mesh(mesh):
        weights = jax.eval_shape(program.weights, params)
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, state)
    held = state_bytes(make_optimizer(config, params), params, specs, mesh.shape)
    letters = match_rules(gpt_dimensions(bias=c.bias, positions=c.positions), params)
    return explain(
        program.placement,
        params,
        weights,
        held | {None: held[None] + program.state.step.dtype.itemsize},
        dict(paths_and_leaves(values(letters))),
        microbatches=config.optim.microbatches,
        passes=1 if c.remat == "none" else 2,  # without remat the backward pass keeps the weights
    )
