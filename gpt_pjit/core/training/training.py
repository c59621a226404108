"""The training of a model: its state, its steps, and their shardings, built in one place.

A run and an ahead-of-time compile both take the step and its shardings from here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from gpt_pjit.config import Config
from gpt_pjit.core.chips import compiler_options
from gpt_pjit.core.errors import ConfigError, Problem, nearest_multiples
from gpt_pjit.core.model import Model, build_model, init_params, param_shapes
from gpt_pjit.core.sharding import AXES, BATCH_AXES, device_kind, optimizer_specs
from gpt_pjit.core.training.depth import make_depth
from gpt_pjit.core.training.optimizer import make_optimizer
from gpt_pjit.core.training.step import TOKENS, TrainState, make_train_step


@dataclass(frozen=True)
class Training:
    """Call its functions inside `jax.set_mesh(training.mesh)`.

    `state` and `tokens` are ShapeDtypeStructs with shardings: what `train_step` takes, what a
    checkpoint is restored to, and what an ahead-of-time compile is given.
    """

    model: Model
    state: TrainState
    tokens: jax.ShapeDtypeStruct
    init: Callable[[jax.Array], TrainState]
    train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    depth: Callable[..., dict[str, Any]]

    @property
    def mesh(self) -> Mesh:
        return self.model.mesh


def build_training(config: Config, mesh: Mesh) -> Training:
    """Raises ConfigError if table, mesh and shapes do not fit; compiles nothing."""
    _check_batch(config, mesh)
    length = config.data.sequence_length
    model = build_model(config.model, length, config.partition, mesh)
    shapes = param_shapes(config.model, length)
    tx = make_optimizer(config, shapes)
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), shapes, jax.eval_shape(tx.init, shapes))
    placement = model.placement
    specs = TrainState(P(), placement.stored, optimizer_specs(tx, shapes, placement.optimizer))
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)

    def init(key: jax.Array) -> TrainState:
        params = init_params(config.model, length, key)
        return TrainState(jnp.int32(0), params, tx.init(params))

    # Automatic mode inside `init`: each device draws only its own part of each parameter.
    sharded_init = jax.sharding.auto_axes(init, axes=AXES, out_sharding=specs)
    return Training(
        model=model,
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
            make_train_step(config, model, tx),
            out_shardings=(shardings, NamedSharding(mesh, P())),
            donate_argnums=0,
            compiler_options=compiler_options(device_kind(mesh)),
        ),
        depth=jax.jit(make_depth(config, model, tx), out_shardings=NamedSharding(mesh, P())),
    )


def _check_batch(config: Config, mesh: Mesh) -> None:
    parts = mesh.shape[BATCH_AXES[0]] * mesh.shape[BATCH_AXES[1]] * config.optim.microbatches
    if config.data.batch_size % parts:
        constraint = f"must be divisible by mesh replica * data * optim.microbatches = {parts}"
        remedy = f"try {nearest_multiples(config.data.batch_size, parts)}"
        raise ConfigError([Problem("data.batch_size", config.data.batch_size, constraint, remedy)])
