"""The masks: the same on every mesh, and as random as they should be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gpt_pjit.core.model.dropout import dropout
from gpt_pjit.core.sharding import make_mesh

RATE = 26 / 256  # what 0.1 becomes


def test_dropout_masks_are_equal_on_every_mesh():
    masks = []
    for shape in ((1, 1, 1), (1, 8, 1), (2, 2, 2)):
        mesh = make_mesh(shape, jax.devices()[: int(np.prod(shape))])
        with jax.set_mesh(mesh):
            x = jax.reshard(jnp.ones((8, 4, 9, 8)), P(("replica", "data"), "tensor", None, None))
            masks.append(np.asarray(dropout(x, 0.5, jax.random.key(3))))
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(masks[0], masks[2])
    assert 0.3 < (masks[0] == 0).mean() < 0.7


@pytest.fixture(scope="module")
def dropped():
    """1 where dropped, float [steps, layers, B, H, T, S], keys derived as a step derives them."""

    def mask(step, layer):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), step), layer)
        return dropout(jnp.ones((4, 4, 64, 64)), 0.1, key) == 0

    with jax.set_mesh(make_mesh((1, 1, 1), jax.devices()[:1])):
        masks = [[mask(step, layer) for layer in range(4)] for step in range(4)]
    return np.asarray(masks, np.float64)


def test_each_row_column_head_sequence_layer_and_step_drops_at_the_rate(dropped):
    """Within five standard deviations of the mean, for each index of each dimension."""
    for dimension in range(dropped.ndim):
        others = tuple(d for d in range(dropped.ndim) if d != dimension)
        deviation = (RATE * (1 - RATE) * dropped.shape[dimension] / dropped.size) ** 0.5
        assert np.abs(dropped.mean(axis=others) - RATE).max() < 5 * deviation, dimension


@pytest.mark.parametrize("dimension", range(6))
def test_neighbours_in_no_dimension_are_correlated(dropped, dimension):
    """Every distance in every dimension; rows of one random word are a quarter of T apart."""
    centred = (dropped - RATE) / (RATE * (1 - RATE)) ** 0.5
    for distance in range(1, dropped.shape[dimension]):
        shifted = np.roll(centred, distance, axis=dimension)
        assert abs((centred * shifted).mean()) < 5 / dropped.size**0.5, distance


def test_what_is_kept_is_scaled_by_the_probability_of_being_kept():
    with jax.set_mesh(make_mesh((1, 1, 1), jax.devices()[:1])):
        x = np.asarray(dropout(jnp.ones((512, 512)), 0.1, jax.random.key(0)))
    np.testing.assert_allclose(np.unique(x), [0, 256 / 230], rtol=1e-6)
    assert x.mean() == pytest.approx(1, abs=5e-3)


@pytest.mark.parametrize("rate", [1e-4, 0.9999])
def test_extreme_rates_neither_vanish_nor_drop_everything(rate):
    with jax.set_mesh(make_mesh((1, 1, 1), jax.devices()[:1])):
        x = np.asarray(dropout(jnp.ones((256, 256)), rate, jax.random.key(0)))
    assert np.isfinite(x).all()
    assert 0 < (x == 0).mean() < 1
