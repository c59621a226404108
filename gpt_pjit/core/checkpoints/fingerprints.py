"""One number for the content of each array, the same on any mesh: what was saved is what is read.

The number is the sum of an array's elements, their bits taken as uint32, each times an odd weight
of its position, modulo 2^32. A changed bit always changes it, and so, but for one case in 2^32,
does any other damage. Devices sum what they hold: no array moves.
"""

import functools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from gpt_pjit.core.sharding import axes_of, paths_and_leaves

SLICE = 2**20  # elements of an array of this host that are summed at once


class Fingerprints(NamedTuple):
    """Of the leaves of a tree, by path: their numbers, those with NaN or infinity, and those whose
    replicas differ, with the devices that hold another value than most.
    """

    numbers: dict[str, int]
    not_finite: list[str]
    torn: dict[str, list[Any]]


def fingerprints(tree: Any) -> Fingerprints:
    """Of the arrays of one mesh, all processes calling it together, or of arrays on this host."""
    found = Fingerprints({}, [], {})
    leaves = paths_and_leaves(tree)
    placed = [leaf for _, leaf in leaves if _on_mesh(leaf)]
    if len(placed) < len(leaves):
        for path, leaf in leaves:
            _add(found, path, *_of_host_array(np.asarray(leaf)))
        return found
    mesh = placed[0].sharding.mesh
    program = _of_shards(mesh, tuple(leaf.sharding.spec for leaf in placed))
    numbers, finite = jax.device_get(program(placed))
    for column, (path, leaf) in enumerate(leaves):
        number = 0
        for devices in _replicas(mesh, leaf.sharding, leaf.shape):
            values = numbers[[device for device, _ in devices], column].tolist()
            usual = max(values, key=values.count)
            others = [device for (_, device), v in zip(devices, values, strict=True) if v != usual]
            if others:
                found.torn.setdefault(path, []).extend(others)
            number += usual
        _add(found, path, number % 2**32, finite[:, column].all())
    return found


def _add(found: Fingerprints, path: str, number: int, finite: Any) -> None:
    found.numbers[path] = number
    if not finite:
        found.not_finite.append(path)


def _on_mesh(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding)


def _of_host_array(array: np.ndarray) -> tuple[int, bool]:
    """By NumPy, in slices: neither a copy of the array nor a compiler."""
    flat, number, finite = np.ascontiguousarray(array).reshape(-1), 0, True
    for start in range(0, flat.size, SLICE):
        part = flat[start : start + SLICE]
        bits = part.view(f"u{part.itemsize}").astype(np.uint32)
        position = np.arange(start, start + part.size).astype(np.uint32)
        number += int(np.sum(bits * (2 * position + 1), dtype=np.uint32))
        finite = finite and bool(np.isfinite(part).all())
    return number % 2**32, finite


@functools.cache
def _of_shards(mesh: Mesh, specs: tuple[P, ...]) -> Any:
    """Of arrays with these specs: the sums of each device, uint32 [devices, arrays], in the order
    of the mesh, and whether its part is finite.
    """

    def of_device(arrays: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
        sums = []
        for x, spec in zip(arrays, specs, strict=True):
            parts = [axes_of(P(entry)) for entry in (*spec, *(None,) * (x.ndim - len(spec)))]
            counts = [int(np.prod([mesh.shape[a] for a in axes])) for axes in parts]
            starts = [
                jax.lax.axis_index(tuple(axes)) * size if axes else 0
                for axes, size in zip(parts, x.shape, strict=True)
            ]
            whole = tuple(n * size for n, size in zip(counts, x.shape, strict=True))
            sums.append(_sum(x, whole, starts))
        finite = [jnp.isfinite(x).all() for x in arrays]
        return jnp.stack(sums)[None], jnp.stack(finite)[None]

    by_device = P(mesh.axis_names, None)
    mapped = jax.shard_map(
        of_device,
        mesh=mesh,
        in_specs=(list(specs),),
        out_specs=(by_device, by_device),
        check_vma=False,  # replicas are compared, not assumed equal
    )
    whole = NamedSharding(mesh, P())
    return jax.jit(lambda arrays: jax.tree.map(lambda x: jax.reshard(x, whole), mapped(arrays)))


def _sum(x: jax.Array, shape: Sequence[int], starts: Sequence[Any]) -> jax.Array:
    """The weighted sum of a part of an array of `shape`, which starts at the element `starts`."""
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    position, stride = jnp.uint32(0), 1
    for dim in reversed(range(x.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, x.shape, dim)
        position += (along + jnp.uint32(starts[dim])) * jnp.uint32(stride % 2**32)
        stride *= shape[dim]
    return jnp.sum(bits * (2 * position + 1), dtype=jnp.uint32)


def _replicas(
    mesh: Mesh, sharding: NamedSharding, shape: tuple[int, ...]
) -> list[list[tuple[int, Any]]]:
    """For each part of an array, the devices that hold it, each with its number in the mesh."""
    held = defaultdict(list)
    indices: Any = sharding.devices_indices_map(shape)
    for number, device in enumerate(mesh.devices.flat):
        held[str(indices[device])].append((number, device))
    return list(held.values())
