"""Attention by blocks of queries against the plain formula, and what the backward pass keeps."""

import itertools
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from gpt_pjit.config import ModelConfig
from gpt_pjit.core.model import blocks, gpt, kernel
from gpt_pjit.core.model.attention import Heads, attend_causally, for_kernel
from gpt_pjit.core.model.dropout import unpacked
from gpt_pjit.core.model.layers import Norm
from gpt_pjit.core.model.positions import alibi_bias, rotation
from gpt_pjit.core.sharding import make_mesh
from tests.helpers import equations, program_on, tiny

H, B, K = 2, 3, 8
RATE = 0.25


@pytest.fixture(autouse=True)
def one_device():
    with jax.set_mesh(make_mesh((1, 1, 1), jax.devices()[:1])):
        yield


def documents_of(length):
    parts = (length // 8, length // 2, length - length // 8 - length // 2)
    return np.repeat(np.arange(3), parts)[None].repeat(B, axis=0)


def plain(alibi, window, q, k, v, kept, documents):
    k, v = (jnp.repeat(x, H // len(x), axis=0) for x in (k, v))
    scores = jnp.einsum("hbtk,hbsk->hbts", q, k) / K**0.5
    length = q.shape[2]
    if alibi:
        scores += alibi_bias(H, length)[:, None]
    seen = np.tril(np.ones((length, length), bool))
    scores = jnp.where(seen & ~np.tril(seen, -(window or length)), scores, -jnp.inf)
    if documents is not None:
        same = documents[:, :, None] == documents[:, None, :]
        scores = jnp.where(same[None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1)
    if kept is not None:
        weights = jnp.where(kept, weights / (1 - RATE), 0)
    return jnp.einsum("hbts,hbsk->hbtk", weights, v)


def wide(masks, window, q, k):
    """Which weights the masks of all blocks keep, as one, [H, B, T, T]."""
    rows, length = [], q.shape[-2]
    for mask, (queries, keys) in zip(masks, blocks.query_blocks(window, q, k), strict=True):
        kept = ~unpacked(mask, queries.stop - queries.start)
        rows.append(jnp.pad(kept, [(0, 0)] * (kept.ndim - 1) + [(keys.start, length - keys.stop)]))
    return jnp.concatenate(rows, axis=-2).reshape(H, B, length, length)


# Of the plain form and of the kernel: length, queries of a block, loops, keys of a chunk.
FORMS = {
    "blocks": ("plain", 16, 5, 8, 0),
    "whole blocks": ("plain", 16, 8, 8, 0),
    "one block": ("plain", 16, 256, 8, 0),
    "loops": ("plain", 16, 3, 2, 0),
    "loops, whole blocks": ("plain", 16, 2, 3, 0),
    "kernel": ("kernel", 100, 32, 2, 64),
    "kernel, small chunks": ("kernel", 70, 32, 8, 64),
    "kernel, one block": ("kernel", 16, 256, 8, 512),
}


@partial(jax.jit, static_argnums=0)
def values_and_gradients(attend, target, *inputs):
    values, pull = jax.vjp(attend, *inputs)
    return values, pull(target)


def cases():
    """Every form with every mask; quick are all of blocks, and of the others all masks at once. Of
    the rest two thirds are long.
    """
    for number, (name, *masks) in enumerate(itertools.product(FORMS, *[(True, False)] * 4)):
        quick = name == "blocks" or (name in ("loops", "kernel") and all(masks))
        words = itertools.compress(("alibi", "dropout", "documents", "window"), masks)
        marks = [] if quick else [pytest.mark.slow, pytest.mark.long][: 1 + (number % 3 > 0)]
        yield pytest.param(name, *masks, marks=marks, id=f"{name}: {', '.join(words)}")


def check(monkeypatch, name, alibi, with_dropout, with_documents, windowed, prepare=Heads):
    """A form gives the plain formula and its gradients."""
    form, length, block, loops, chunk = FORMS[name]
    groups = 1 if windowed else H
    monkeypatch.setattr(blocks, "QUERY_BLOCK", block)
    monkeypatch.setattr(kernel, "QUERY_BLOCK", block)
    monkeypatch.setattr(kernel, "KEY_CHUNK", chunk)
    monkeypatch.setattr(blocks, "LOOPS", loops)
    q, k, v, target = jax.random.normal(jax.random.key(length), (4, H, B, length, K))
    k, v = k[:groups], v[:groups]
    window = length * 3 // 8 if windowed else 0
    documents = documents_of(length) if with_documents else None
    key = jax.random.key(1) if with_dropout else None
    positions = "alibi" if alibi else "none"
    config = ModelConfig(positions=positions, dropout_attention=RATE, attention=form)
    kept = None
    if with_dropout:
        grouped = blocks.by_group(q, groups)
        kept = wide(blocks.draw_masks(RATE, window, grouped, k, key), window, grouped, k)

    def mine(q, k, v):
        return attend_causally(config, window, documents, prepare(q, k, v), key)

    def theirs(q, k, v):
        return plain(alibi, window, *prepare(q, k, v).ready(), kept, documents)

    found, expected = (values_and_gradients(f, target, q, k, v) for f in (mine, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


@pytest.mark.parametrize(
    ("name", "alibi", "with_dropout", "with_documents", "windowed"), list(cases())
)
def test_each_form_gives_the_plain_formula_and_its_gradients(
    monkeypatch, name, alibi, with_dropout, with_documents, windowed
):
    check(monkeypatch, name, alibi, with_dropout, with_documents, windowed)


NORM = Norm(ModelConfig(norm="rms", norm_gain=False, norm_epsilon=0.1), K, bias=False)
ROPE = ModelConfig(n_heads=H, d_model=H * K, positions="rope", rope_theta=20.0)


def rotation_of(fraction, documents):
    """Of places in rows, or in documents, which differ from row to row."""
    places = jnp.arange(100)[None]
    if documents:
        places = places - jnp.asarray([0, 12, 62])[documents_of(100)]
        places *= 1 + jnp.arange(B)[:, None]
    return rotation(replace(ROPE, rope_fraction=fraction), places)


PREPARED = {
    "norms": {"norms": (NORM, NORM)},
    "norms with a gain": {
        "norms": (Norm(ModelConfig(norm="rms"), K, bias=False),) * 2,
        "rotation": (1.0, False),
    },
    "norms and rotation": {"norms": (NORM, NORM), "rotation": (1.0, False), "factor": 1.5},
    "rotation in documents": {"rotation": (1.0, True)},
    "half a head": {"rotation": (0.5, False), "factor": 0.5},
}


@pytest.mark.parametrize("name", PREPARED)
def test_the_kernel_norms_and_rotates_as_heads_are_made_ready(monkeypatch, name):
    how = dict(PREPARED[name])
    if "rotation" in how:
        how["rotation"] = rotation_of(*how["rotation"])

    def prepare(q, k, v):
        heads = Heads(q, k, v, **how)
        given, preparation = for_kernel(heads)
        assert (given[0] is q) == (name != "norms with a gain")
        assert preparation.rotation is heads.rotation
        return heads

    check(monkeypatch, "kernel", False, False, name != "norms", True, prepare)


@pytest.mark.slow
@pytest.mark.parametrize("masked", [True, False])
def test_products_in_bfloat16_are_as_close_to_float32_as_those_of_the_plain_form(masked):
    length, window = 600, 250 if masked else 0
    documents = documents_of(length) if masked else None
    *inputs, target = jax.random.normal(jax.random.key(3), (4, H, B, length, K), jnp.bfloat16)
    config = ModelConfig(positions="alibi" if masked else "none", dropout_attention=RATE)
    key, (q, k, _) = jax.random.key(1), inputs
    kept = wide(blocks.draw_masks(RATE, window, q, k, key), window, q, k) if masked else None

    def of(form):
        def attend(q, k, v):
            chosen = replace(config, attention=form)
            return attend_causally(
                chosen, window, documents, Heads(q, k, v), key if masked else None
            )

        return values_and_gradients(attend, target, *inputs)

    def exact(q, k, v):
        return plain(masked, window, q, k, v, kept, documents)

    found = [jax.tree.leaves(of(form)) for form in ("plain", "kernel")]
    target, *inputs = (x.astype(jnp.float32) for x in (target, *inputs))
    expected = jax.tree.leaves(values_and_gradients(exact, target, *inputs))
    for exactly, *both in zip(expected, *found, strict=True):
        of_plain, of_kernel = (jnp.max(jnp.abs(x.astype(jnp.float32) - exactly)) for x in both)
        assert 0 < of_kernel < 2 * of_plain


@pytest.mark.slow
@pytest.mark.parametrize("masked", [pytest.param(True, marks=pytest.mark.long), False])
def test_the_kernel_reads_nothing_that_it_has_not_written(monkeypatch, masked):
    """In a simulated TPU, whose memory is NaN at first, and where reads beyond an array raise."""
    simulated = {"interpret": pltpu.InterpretParams(random_seed=0)}
    original = kernel.pl.pallas_call
    monkeypatch.setattr(kernel.pl, "pallas_call", lambda *a, **k: original(*a, **k | simulated))
    check(monkeypatch, "kernel", masked, masked, masked, masked)
    if masked:
        for name in PREPARED:
            test_the_kernel_norms_and_rotates_as_heads_are_made_ready(monkeypatch, name)


@pytest.mark.parametrize("block", [256, 2])
@pytest.mark.parametrize("window", [0, 6])
def test_fewer_queries_than_keys_are_the_last_ones(monkeypatch, window, block):
    """In one block, and in loops."""
    q, k, v = jax.random.normal(jax.random.key(0), (3, H, B, 16, K))
    attend = jax.jit(partial(blocks.attend, True, 0.0, window))
    whole = attend(q, k, v, None, None)
    monkeypatch.setattr(blocks, "QUERY_BLOCK", block)
    monkeypatch.setattr(blocks, "LOOPS", 2)
    last = attend(q[:, :, -9:], k, v, None, None)
    np.testing.assert_allclose(last, whole[:, :, -9:], atol=1e-6)


@pytest.mark.parametrize("window", [0, 6])
def test_more_blocks_are_no_larger_program(monkeypatch, window):
    monkeypatch.setattr(blocks, "QUERY_BLOCK", 2)
    monkeypatch.setattr(blocks, "LOOPS", 2)

    def equations(length):
        x = jax.ShapeDtypeStruct((H, B, length, K), jnp.float32)

        def gradients(q, k, v, target):
            masks = blocks.draw_masks(RATE, window, q, k, jax.random.key(1))
            attend = partial(blocks.attend, True, RATE, window, masks=masks, segments_BS=None)
            return jax.vjp(attend, q, k, v)[1](target)

        return str(jax.make_jaxpr(gradients)(x, x, x, x)).count(" = ")

    assert equations(64) == equations(32)


@pytest.mark.parametrize(
    ("remat", "block", "kept"),
    [("selective", 32, len(gpt.SAVED) + 7), ("selective", 2, len(gpt.SAVED) + 6), ("full", 32, 1)],
)
@jax.numpy_dtype_promotion("standard")  # optax promotes its counters
def test_what_the_backward_pass_is_given_of_each_layer(monkeypatch, remat, block, kept):
    """The input, and with `selective` all of SAVED: three of qkv and of masks, two of norms. Loops
    of blocks keep no mask.
    """
    monkeypatch.setattr(blocks, "QUERY_BLOCK", block)
    monkeypatch.setattr(blocks, "LOOPS", 8)
    dropouts = {"dropout_residual": 0.1, "dropout_attention": 0.1}
    config = tiny(model={"n_layers": 3, "remat": remat} | dropouts)
    program = program_on(config, (1, 1, 1))
    with jax.set_mesh(program.mesh):
        jaxpr = jax.make_jaxpr(program.train_step)(program.state, program.tokens)
    loops = (e for _, e in equations(jaxpr.jaxpr) if e.primitive.name == "scan")
    forward = next(loop for loop in loops if loop.params["length"] == config.model.n_layers)
    stacked = [v for v in forward.outvars if v.aval.shape[:1] == (config.model.n_layers,)]
    assert len(stacked) == kept
