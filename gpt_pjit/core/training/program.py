"""The compiled program of a run: functions and shardings, built in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from gpt_pjit.config import Config
from gpt_pjit.core.errors import ConfigError, Problem, nearest_multiples
from gpt_pjit.core.model import Cache, init_params, param_shapes
from gpt_pjit.core.sharding import (
    AXES,
    BATCH_AXES,
    Placement,
    Rules,
    gpt_rules,
    optimizer_specs,
    place,
)
from gpt_pjit.core.training.optimizer import make_optimizer
from gpt_pjit.core.training.step import (
    TOKENS,
    TrainState,
    make_eval_step,
    make_extend,
    make_forward,
    make_train_step,
    make_weights,
)


@dataclass(frozen=True)
class Program:
    """Call its functions inside `jax.set_mesh(program.mesh)`.

    `state` and `tokens` are ShapeDtypeStructs with shardings: what `train_step` takes, what a
    checkpoint is restored to, and what an ahead-of-time compile is given. `weights` casts and
    gathers parameters for `forward` and `extend` (not compiled) and `eval_step`.
    """

    mesh: Mesh
    placement: Placement
    state: TrainState
    tokens: jax.ShapeDtypeStruct
    init: Callable[[jax.Array], TrainState]
    train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    weights: Callable[[Any], Any]
    forward: Callable[..., jax.Array]
    extend: Callable[..., tuple[jax.Array, Cache]]
    eval_step: Callable[..., jax.Array]


def build(config: Config, mesh: Mesh) -> Program:
    """Raises ConfigError where table, mesh and shapes do not fit; compiles nothing yet."""
    _check_batch(config, mesh)
    length = config.data.sequence_length
    params = param_shapes(config.model, length)
    placement = place(sharding_rules(config), params, config.partition.layout, mesh.shape)
    tx = make_optimizer(config, params)
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, jax.eval_shape(tx.init, params))
    specs = TrainState(P(), placement.stored, optimizer_specs(tx, params, placement.optimizer))
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)

    def init(key: jax.Array) -> TrainState:
        params = init_params(config.model, length, key)
        return TrainState(jnp.int32(0), params, tx.init(params))

    logits_of = make_forward(config, placement)
    # Automatic mode inside `init`: each device draws only its own part of each parameter.
    sharded_init = jax.sharding.auto_axes(init, axes=AXES, out_sharding=specs)
    return Program(
        mesh=mesh,
        placement=placement,
        state=jax.tree.map(
            lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
            state,
            shardings,
        ),
        tokens=jax.ShapeDtypeStruct(
            (config.data.batch_size, length + 1), jnp.int32, sharding=NamedSharding(mesh, TOKENS)
        ),
        init=jax.jit(sharded_init),
        train_step=jax.jit(
            make_train_step(config, placement, tx),
            out_shardings=(shardings, NamedSharding(mesh, P())),
            donate_argnums=0,
        ),
        weights=jax.jit(make_weights(config, placement)),
        forward=logits_of,
        extend=make_extend(config, placement),
        eval_step=jax.jit(make_eval_step(logits_of)),
    )


def sharding_rules(config: Config) -> Rules:
    """The table of the config, or that of the GPT."""
    c = config.model
    return config.partition.rules or gpt_rules(bias=c.bias, positions=c.positions)


def _check_batch(config: Config, mesh: Mesh) -> None:
    parts = mesh.shape[BATCH_AXES[0]] * mesh.shape[BATCH_AXES[1]] * config.optim.microbatches
    if config.data.batch_size % parts:
        constraint = f"must be divisible by mesh replica * data * optim.microbatches = {parts}"
        remedy = f"try {nearest_multiples(config.data.batch_size, parts)}"
        raise ConfigError([Problem("data.batch_size", config.data.batch_size, constraint, remedy)])
