"""Muon: momentum, orthogonalised (Jordan et al., https://kellerjordan.github.io/posts/muon).

A matrix is one projection of one layer, all heads together: queries, keys and values are three
matrices [D, heads * K], the output projection is [heads * K, D]. Orthogonalising needs the whole
matrix, so matrices are dealt over all devices, each works on its own, and the results return.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from gpt_pjit.core.sharding import keep, path_string

MOMENTUM = 0.95
STACKED = "LC"  # dimensions that number matrices; the others are of one matrix


class Dealing(NamedTuple):
    """How a stacked parameter becomes whole matrices: transposed, merged to `shape` (matrices,
    padded to a multiple of the devices, then the dimensions of one), resharded along `specs`.
    """

    order: tuple[int, ...]
    shape: tuple[int, ...]
    specs: tuple[P, ...]
    numbers: optax.contrib.MuonDimensionNumbers


def dealing(
    dimensions: str, shape: tuple[int, ...], spec: P, axis_sizes: Mapping[str, int]
) -> Dealing:
    """The dealing of a parameter with these dimensions, by letter, and this spec.

    Each reshard moves one axis from a matrix to the stack: an all-to-all, or nothing where the
    axis split no dimension. The way back is the same in reverse.
    """
    stacked = [dim for dim, letter in enumerate(dimensions) if letter in STACKED]
    inner = [dim for dim in range(len(shape)) if dim not in stacked]
    count, devices = math.prod(shape[dim] for dim in stacked), math.prod(axis_sizes.values())
    axes, within = tuple(axis_sizes), P(*(spec[dim] for dim in inner))
    specs = (
        P(axes[:moved] or None, *keep(within, frozenset(axes[moved:])))
        for moved in range(len(axes) + 1)
    )
    inputs = 1 if dimensions[inner[0]] == "D" else len(inner) - 1
    return Dealing(
        (*stacked, *inner),
        (count + -count % devices, *(shape[dim] for dim in inner)),
        tuple(specs),
        optax.contrib.MuonDimensionNumbers(
            tuple(range(1, 1 + inputs)), tuple(range(1 + inputs, 1 + len(inner)))
        ),
    )


def scale_by_muon(dtype: str, dimensions: Mapping[str, str]) -> optax.GradientTransformation:
    """Nesterov momentum, then the nearest orthogonal matrix times sqrt(max(1, outputs / inputs)).

    `dimensions` are letters by path. Matrices move, and are orthogonalised, in `dtype`. Call the
    update inside `jax.set_mesh`, with an explicit mesh.
    """

    def orthogonal(updates: Any, _: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, update: orthogonalize(update, dimensions[path_string(path)], dtype),
            updates,
        )

    return optax.chain(optax.trace(MOMENTUM, nesterov=True), optax.stateless(orthogonal))


@jax.named_scope("muon")
def orthogonalize(update: jax.Array, dimensions: str, dtype: str) -> jax.Array:
    """Each matrix of a stacked update, orthogonalised and scaled; sharded as the update is."""
    sharding = jax.typeof(update).sharding
    deal = dealing(dimensions, update.shape, sharding.spec, sharding.mesh.shape)
    moved = update.astype(dtype).transpose(deal.order)
    inner, within = deal.shape[1:], deal.specs[0][1:]
    stacked = moved.shape[: -len(inner)]
    apart = P(*(None,) * len(stacked), *within)
    count = math.prod(stacked)
    x = jax.reshard(moved, apart).reshape(count, *inner, out_sharding=deal.specs[0])
    x = jnp.pad(x, ((0, deal.shape[0] - count), *((0, 0),) * len(inner)))
    for spec in deal.specs[1:]:
        x = jax.reshard(x, spec)
    newton_schulz = optax.contrib.scale_by_muon(  # without momentum: Newton-Schulz alone
        beta=0.0, nesterov=False, weight_dimension_numbers=deal.numbers
    )
    x, _ = newton_schulz.update(x, newton_schulz.init(x))
    for spec in deal.specs[-2::-1]:
        x = jax.reshard(x, spec)
    inputs, outputs = (math.prod(deal.shape[dim] for dim in dims) for dims in deal.numbers)
    x = x[:count].astype(update.dtype) * max(1, outputs / inputs) ** 0.5
    x = x.reshape(*stacked, *inner, out_sharding=apart)
    back = tuple(deal.order.index(dim) for dim in range(update.ndim))
    return jax.reshard(x.transpose(back), sharding.spec)
