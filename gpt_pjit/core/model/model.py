"""A GPT on a mesh: where its parameters live, and what is computed with them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from gpt_pjit.config import ModelConfig, PartitionConfig
from gpt_pjit.core.model.gpt import forward, losses, param_shapes
from gpt_pjit.core.parameters import gpt_rules, matrix_rules
from gpt_pjit.core.sharding import (
    Placement,
    Rules,
    match_rules,
    over_batch_axes,
    place,
    values,
    without_batch_axes,
)


@dataclass(frozen=True, eq=False)
class Model:
    """Call its functions inside `jax.set_mesh(model.mesh)`.

    `params` are ShapeDtypeStructs with the shardings as stored: what a checkpoint is restored to.
    """

    config: ModelConfig
    mesh: Mesh
    placement: Placement
    params: Any

    @partial(jax.jit, static_argnums=0)
    def weights(self, params: Any) -> Any:
        """What `forward` takes: parameters, cast and gathered."""
        return self.gather_weights(params)

    def gather_weights(self, params: Any) -> Any:
        """Matrices cast to the compute dtype, all moved to the compute specs; not compiled.

        The cast comes first: a gather moves bfloat16.
        """
        dtype = jnp.dtype(self.config.dtype)
        with jax.named_scope("gather_weights"):
            is_matrix = values(match_rules(matrix_rules(self.config), params))
            cast = jax.tree.map(lambda w, m: w.astype(dtype) if m else w, params, is_matrix)
            return jax.tree.map(jax.reshard, cast, self.placement.compute)

    def gather_layer(self, block: Any, kind: str | None = None) -> Any:
        """Gathers one layer's weights over the batch axes, if they are split.

        `kind` is "reduced" for a pass that is differentiated.
        """

        def gather(w: jax.Array, spec: P) -> jax.Array:
            layer_spec = P(*spec[1:])
            whole = without_batch_axes(layer_spec)
            if whole == layer_spec:
                return w
            with jax.named_scope("gather_layer"):
                return jax.reshard(w, over_batch_axes(whole, kind=kind) if kind else whole)

        return jax.tree.map(gather, block, self.placement.compute["blocks"])

    def forward(
        self, weights: Any, tokens_BT: jax.Array, segments_BT: jax.Array | None = None
    ) -> jax.Array:
        """Float32 logits [B, T, V] without dropout; not compiled.

        B must be divisible by the batch axes of the mesh; T may be any length unless positions
        are learned.
        """
        return forward(self.config, weights, tokens_BT, None, self.gather_layer, segments_BT)

    def losses(
        self,
        weights: Any,
        tokens_BT: jax.Array,
        targets_BT: jax.Array,
        key: jax.Array | None,
        segments_BT: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        """For training: the negative log-likelihood of each target and the logsumexp of its logits.

        `weights` are reduced over the batch axes; dropout by `key`.
        """
        gather: Callable[[Any], Any] = partial(self.gather_layer, kind="reduced")
        return losses(self.config, weights, tokens_BT, targets_BT, key, gather, segments_BT)


def build_model(
    c: ModelConfig, sequence_length: int, partition: PartitionConfig, mesh: Mesh
) -> Model:
    """Raises ConfigError if table, mesh and shapes do not fit; compiles nothing."""
    params = param_shapes(c, sequence_length)
    placement = place(sharding_rules(c, partition), params, partition.layout, mesh.shape)
    stored = jax.tree.map(
        lambda shape, spec: jax.ShapeDtypeStruct(
            shape.shape, shape.dtype, sharding=NamedSharding(mesh, spec)
        ),
        params,
        placement.stored,
    )
    return Model(c, mesh, placement, stored)


def sharding_rules(c: ModelConfig, partition: PartitionConfig) -> Rules:
    return partition.rules or gpt_rules(c)
