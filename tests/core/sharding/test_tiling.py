"""Any table on any tree and mesh: a ConfigError, or shards that tile every tensor."""

import math

import jax
import numpy as np
from hypothesis import event, given, settings, strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.sharding import (
    AXES,
    LAYOUTS,
    axes_of,
    make_mesh,
    paths_and_leaves,
    place,
    shard_shape,
)
from gpt_pjit.partition import TREES, lint, parts_of_devices

NAMES = st.sampled_from(("a", "b", "kernel", "scale"))
SHAPES = st.lists(st.sampled_from((1, 2, 3, 4, 6, 8, 12)), max_size=3).map(tuple)
TREES_OF_SHAPES = st.recursive(
    SHAPES.map(lambda shape: np.zeros(shape, np.float32)),
    lambda inner: (
        st.dictionaries(NAMES, inner, min_size=1, max_size=3)
        | st.lists(inner, min_size=1, max_size=2)
    ),
    max_leaves=5,
)
MESHES = st.tuples(*(st.sampled_from((1, 2, 3, 4)) for _ in AXES)).filter(
    lambda shape: math.prod(shape) <= 32
)
ENTRIES = st.sampled_from(
    (None, None, None, *AXES, ("data", "tensor"), ("tensor", "data", "replica"), "model")
)


@st.composite
def tables(draw, tree):
    """Rows that mostly fit: a regex for some path, specs of about its rank."""
    rows = []
    for path, leaf in paths_and_leaves(tree):
        regex = draw(st.sampled_from((path, path, path, ".*kernel", ".*", "[a-z/0-9]*scale")))
        rank = draw(st.sampled_from((leaf.ndim,) * 8 + (1, 2)))
        spec = st.lists(ENTRIES, min_size=rank, max_size=rank).map(tuple)
        rows.append((regex, *draw(st.lists(spec, min_size=1, max_size=3))))
    return draw(st.permutations(rows)) if draw(st.booleans()) else rows


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_an_error_or_shards_that_tile_every_tensor_once_per_replica(data):
    tree, shape = data.draw(TREES_OF_SHAPES), data.draw(MESHES)
    rules, layout = data.draw(tables(tree)), data.draw(st.sampled_from(tuple(LAYOUTS)))
    sizes = dict(zip(AXES, shape, strict=True))
    try:
        placement = place(rules, tree, layout, sizes, scanned=data.draw(st.sampled_from(("", "a"))))
    except ConfigError:
        event("refused")
        return
    event("placed")
    mesh = make_mesh(shape, jax.devices()[: math.prod(shape)])
    for name in TREES:
        specs = getattr(placement, name)
        assert jax.tree.structure(specs) == jax.tree.structure(tree)
        for leaf, spec in zip(jax.tree.leaves(tree), jax.tree.leaves(specs), strict=True):
            regions = check_tiles(leaf.shape, spec, mesh)
            check_pictures(leaf.shape, spec, sizes, [regions[d] for d in mesh.devices.flat])


NAMED = st.lists(
    st.tuples(
        st.sampled_from(("fsdp", "tp", "x", "stage", "experts", "data")),
        st.sampled_from((1, 2, 3, 4)),
        st.sampled_from(("batch", "model", "model", None)),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda axis: axis[0],
).filter(lambda axes: math.prod(size for _, size, _ in axes) <= 32)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_axes_of_any_name_are_kept_by_role_or_refused_by_name(data):
    """No axis is dropped in silence: nothing is whole without a row, a layout or a finding."""
    tree, axes = data.draw(TREES_OF_SHAPES), data.draw(NAMED)
    names, layout = [name for name, *_ in axes], data.draw(st.sampled_from(tuple(LAYOUTS)))
    sizes, roles = {n: size for n, size, _ in axes}, {n: role for n, _, role in axes if role}
    entries = st.sampled_from((None, *names, tuple(names[:2])))
    rows = [
        (path, data.draw(st.lists(entries, min_size=leaf.ndim, max_size=leaf.ndim).map(tuple)))
        for path, leaf in paths_and_leaves(tree)
        if data.draw(st.integers(0, 9))
    ]
    kinds = {(f.field, f.kind) for f in lint(rows, tree, sizes, roles) if f.severity != "warning"}
    assert {f for f, kind in kinds if kind == "axis without a role"} == {
        f"mesh.{name}" for name in names if name not in roles
    }
    unruled = {p for p, leaf in paths_and_leaves(tree) if p not in dict(rows)}
    try:
        placement = place(rows, tree, layout, sizes, scanned="", roles=roles)
    except ConfigError:
        event("refused")
        return
    event("placed")
    assert not unruled or ("leaves", "one element") in kinds
    devices = np.array(jax.devices()[: math.prod(sizes.values())])
    mesh = Mesh(devices.reshape(tuple(sizes.values())), tuple(sizes))
    for name in TREES:
        keeps_batch = getattr(LAYOUTS[layout], name)
        for (path, leaf), spec in zip(
            paths_and_leaves(tree), jax.tree.leaves(getattr(placement, name)), strict=True
        ):
            named = axes_of(P(*dict(rows).get(path, ())))
            wanted = [a for a in named if keeps_batch or roles[a] == "model"]
            assert list(axes_of(spec)) == wanted
            check_tiles(leaf.shape, spec, mesh)


def check_tiles(shape, spec, mesh):
    """The shards of all devices cover a tensor evenly; returns the regions that they hold."""
    held = np.zeros(shape, int)
    regions = NamedSharding(mesh, spec).devices_indices_map(shape)
    for region in regions.values():
        held[region] += 1
        assert held[region].shape == shard_shape(shape, spec, mesh.shape)
    copies = mesh.size * math.prod(shard_shape(shape, spec, mesh.shape)) / held.size
    assert np.all(held == copies)
    return regions


def check_pictures(shape, spec, sizes, regions):
    """The page's numbering of parts is that of the devices of the mesh."""
    part = shard_shape(shape, spec, sizes)
    for numbers, region in zip(parts_of_devices(spec, sizes), regions, strict=True):
        starts = [one.indices(size)[0] for one, size in zip(region, shape, strict=True)]
        assert starts == [number * size for number, size in zip(numbers, part, strict=True)]
