"""Attention by blocks of queries against the plain formula, and what the backward pass keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_pjit.core.model import attention, gpt
from gpt_pjit.core.model.dropout import unpacked
from gpt_pjit.core.model.positions import alibi_bias
from gpt_pjit.core.sharding import make_mesh
from tests.helpers import program_on, tiny

H, B, T, K = 2, 3, 16, 8
RATE = 0.25


@pytest.fixture(autouse=True)
def one_device():
    with jax.set_mesh(make_mesh((1, 1, 1), jax.devices()[:1])):
        yield


DOCUMENTS = np.repeat(np.arange(3), (2, 8, 6))[None].repeat(B, axis=0)


def plain(alibi, window, q, k, v, kept, documents):
    k, v = (jnp.repeat(x, H // len(x), axis=0) for x in (k, v))
    scores = jnp.einsum("hbtk,hbsk->hbts", q, k) / K**0.5
    if alibi:
        scores += alibi_bias(H, T)[:, None]
    seen = np.tril(np.ones((T, T), bool)) & ~np.tril(np.ones((T, T), bool), -(window or T))
    scores = jnp.where(seen, scores, -jnp.inf)
    if documents is not None:
        same = documents[:, :, None] == documents[:, None, :]
        scores = jnp.where(same[None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1)
    if kept is not None:
        weights = jnp.where(kept, weights / (1 - RATE), 0)
    return jnp.einsum("hbts,hbsk->hbtk", weights, v)


def wide(masks, window, q, k):
    """Which weights the masks of all blocks keep, as one, [H, B, T, T]."""
    rows = []
    for mask, (queries, keys) in zip(masks, attention._blocks(window, q, k), strict=True):
        kept = ~unpacked(mask, queries.stop - queries.start)
        rows.append(jnp.pad(kept, [(0, 0)] * (kept.ndim - 1) + [(keys.start, T - keys.stop)]))
    return jnp.concatenate(rows, axis=-2).reshape(H, B, T, T)


@pytest.mark.parametrize(
    "block", [5, *(pytest.param(size, marks=pytest.mark.slow) for size in (8, 256))]
)
@pytest.mark.parametrize("alibi", [True, False])
@pytest.mark.parametrize("with_dropout", [True, False])
@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one", "documents"])
@pytest.mark.parametrize(("groups", "window"), [(H, 0), (1, 6)], ids=["whole", "window"])
def test_blocks_give_the_plain_formula_and_its_gradients(
    monkeypatch, block, alibi, with_dropout, documents, groups, window
):
    monkeypatch.setattr(attention, "QUERY_BLOCK", block)
    q, k, v, target = jax.random.normal(jax.random.key(0), (4, H, B, T, K))
    k, v = k[:groups], v[:groups]
    key = jax.random.key(1) if with_dropout else None
    kept = None
    if with_dropout:
        by_group = attention.by_group(q, groups)
        masks = attention.draw_masks(RATE, window, by_group, k, key)
        kept = wide(masks, window, by_group, k)

    def loss(attend, q, k, v):
        return jnp.sum(attend(q, k, v) * target)

    def mine(q, k, v):
        return attention.attend_causally(alibi, RATE, window, documents, q, k, v, key)

    def theirs(q, k, v):
        return plain(alibi, window, q, k, v, kept, documents)

    np.testing.assert_allclose(mine(q, k, v), theirs(q, k, v), atol=1e-5)
    gradients = [jax.grad(loss, (1, 2, 3))(f, q, k, v) for f in (mine, theirs)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *gradients)


@pytest.mark.parametrize("window", [0, 6])
def test_fewer_queries_than_keys_are_the_last_ones(window):
    q, k, v = jax.random.normal(jax.random.key(0), (3, H, B, T, K))
    whole = attention.attend(True, 0.0, window, q, k, v, None, None)
    last = attention.attend(True, 0.0, window, q[:, :, -3:], k, v, None, None)
    np.testing.assert_allclose(last, whole[:, :, -3:], atol=1e-6)


@pytest.mark.parametrize(("remat", "kept"), [("selective", len(gpt.SAVED) + 7), ("full", 1)])
@jax.numpy_dtype_promotion("standard")  # optax promotes its counters
def test_what_the_backward_pass_is_given_of_each_layer(remat, kept):
    """The input, and with `selective` all of SAVED: three of qkv and of masks, two of norms."""
    dropouts = {"dropout_residual": 0.1, "dropout_attention": 0.1}
    config = tiny(model={"n_layers": 3, "remat": remat} | dropouts)
    program = program_on(config, (1, 1, 1))
    with jax.set_mesh(program.mesh):
        jaxpr = jax.make_jaxpr(program.train_step)(program.state, program.tokens)
    forward = next(layer_loops(jaxpr.jaxpr))
    stacked = [v for v in forward.outvars if v.aval.shape[:1] == (config.model.n_layers,)]
    assert len(stacked) == kept


def layer_loops(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan" and equation.params["length"] == 3:
            yield equation
        for value in equation.params.values():
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                yield from layer_loops(getattr(value, "jaxpr", value))
