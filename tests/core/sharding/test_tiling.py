"""Any table on any tree and mesh: a ConfigError, or shards that tile every tensor."""

import math

import jax
import numpy as np
from hypothesis import event, given, settings, strategies as st
from jax.sharding import NamedSharding

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.sharding import AXES, LAYOUTS, make_mesh, paths_and_leaves, place, shard_shape
from gpt_pjit.partition import TREES, parts_of_devices

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
    n_devices = math.prod(shape)
    mesh = make_mesh(shape, jax.devices()[:n_devices])
    for name in TREES:
        specs = getattr(placement, name)
        assert jax.tree.structure(specs) == jax.tree.structure(tree)
        for leaf, spec in zip(jax.tree.leaves(tree), jax.tree.leaves(specs), strict=True):
            held = np.zeros(leaf.shape, int)
            regions = NamedSharding(mesh, spec).devices_indices_map(leaf.shape)
            for region in regions.values():
                held[region] += 1
                assert held[region].shape == shard_shape(leaf.shape, spec, sizes)
            copies = n_devices * math.prod(shard_shape(leaf.shape, spec, sizes)) / held.size
            assert np.all(held == copies)
            check_pictures(leaf.shape, spec, sizes, [regions[d] for d in mesh.devices.flat])


def check_pictures(shape, spec, sizes, regions):
    """The page's numbering of parts is that of the devices of the mesh."""
    part = shard_shape(shape, spec, sizes)
    for numbers, region in zip(parts_of_devices(spec, sizes), regions, strict=True):
        starts = [one.indices(size)[0] for one, size in zip(region, shape, strict=True)]
        assert starts == [number * size for number, size in zip(numbers, part, strict=True)]
