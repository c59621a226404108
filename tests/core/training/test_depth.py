"""What depth says is what the step does, and the step does not notice it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_pjit.core.model import alibi_slopes, blocks, forward, rotary_frequencies, token_nll
from gpt_pjit.core.sharding import make_mesh, paths_and_leaves
from gpt_pjit.core.training import depth_metrics
from gpt_pjit.core.training.depth import LOST, activations
from tests.helpers import program_on, random_tokens, tiny, with_fields

pytestmark = pytest.mark.slow
LAYERS = 2


def norm(tree, layer=None):
    """Of the whole tree, or of one layer of `blocks`, in float64."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
    parts = leaves if layer is None else [leaf[layer] for leaf in leaves]
    return np.sqrt(sum((part**2).sum() for part in parts))


@pytest.fixture(scope="module")
def looked():
    """The config, its batch, parameters before and after a step, the step's metrics with and
    without a look before it, and what the look saw.
    """
    # Large logits: some tokens are lost.
    config = tiny(
        model={"logit_factor": 25.0, "dropout_residual": 0.0},
        optim={"microbatches": 2, "warmup_steps": 1, "clip_norm": 1e9},
    )
    training, batch = program_on(config, (1, 4, 2)), random_tokens(config, 0)
    with jax.set_mesh(training.mesh):
        tokens = jax.device_put(batch, training.tokens.sharding)
        state, _ = training.train_step(training.init(jax.random.key(0)), tokens)
        before = jax.device_get(state.params)
        found = depth_metrics(training.depth(state, tokens))
        state, metrics = training.train_step(state, tokens)
        after, metrics = jax.device_get((state.params, metrics))
        unseen, _ = training.train_step(training.init(jax.random.key(0)), tokens)
        unseen, without = training.train_step(unseen, tokens)
        unseen = jax.device_get((unseen.params, without))
    return config, batch, before, after, metrics, unseen, found


def test_norms_are_those_of_the_step(looked):
    _, _, before, after, metrics, _, found = looked
    update = jax.tree.map(np.subtract, after, before)
    for name, tree, tolerance in (("weights", before, 1e-5), ("update", update, 1e-3)):
        for layer in range(LAYERS):
            expected = norm(tree["blocks"], layer)
            assert found[f"depth/{name}/layer_{layer:02}"] == pytest.approx(expected, tolerance)
        for part in set(tree) - {"blocks"}:
            assert found[f"depth/{name}/{part}"] == pytest.approx(norm(tree[part]), tolerance)
    for name in ("activation", "attention_logit"):
        values = [found.get(f"depth/{name}/layer_{layer:02}", 0) for layer in range(LAYERS)]
        assert min(values) > 0
    parts = [value for name, value in found.items() if name.startswith("depth/gradient/")]
    assert len(parts) == LAYERS + len(before) - 1
    assert np.sqrt(np.sum(np.square(parts))) == pytest.approx(metrics["train/grad_norm"], 1e-5)


def test_lost_tokens_are_counted(looked):
    config, batch, before, *_, found = looked
    with jax.set_mesh(make_mesh((1, 1, 1), jax.devices()[:1])):
        logits = forward(config.model, jax.tree.map(jnp.asarray, before), batch[:, :-1])
        nll = np.asarray(token_nll(logits, jnp.asarray(batch[:, 1:])))
    share = np.mean(nll > LOST)
    assert 0.05 < share < 0.95
    assert found["depth/lost"] == pytest.approx(share, abs=2 / nll.size)


def test_a_step_does_not_notice(looked):
    *_, after, metrics, (unseen, without), _ = looked
    assert metrics == without
    same = jax.tree.map(np.array_equal, after, unseen)
    assert all(dict(paths_and_leaves(same)).values())


ALIBI = {"model.dropout_residual": 0.1}  # which a look leaves out
ROPE = {
    "model.positions": "rope",
    "model.norm": "rms",
    "model.qk_norm": True,
    "model.n_kv_heads": 2,
    "model.n_layers": 4,
    "model.windows": (8, 0),
    "model.activation": "relu2",
}


def plain_layers(c, params, tokens, documents):
    """RMS of the stream and the largest attention logit of each layer, in float64, row by row."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    length, found = tokens.shape[1], []
    seen = np.tri(length, dtype=bool) & (documents[:, :, None] == documents[:, None])
    place = np.array([[np.sum(row[:t] == row[t]) for t in range(length)] for row in documents])

    def norm(x, scale):
        x = x - x.mean(-1, keepdims=True) * (c.norm == "layer")
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + c.norm_epsilon) * scale

    def turn(x):  # [B, T, H, K], the first half of a head against the second
        angle = (place[..., None] * rotary_frequencies(c))[:, :, None]
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle),
                               b * np.cos(angle) + a * np.sin(angle)], -1)  # fmt: skip

    x = params["embed"]["embedding"][tokens]
    for layer in range(c.n_layers):
        p = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["blocks"])
        visible = seen[:, None]
        if c.windows and (window := c.windows[layer % len(c.windows)]):
            visible = visible & ~np.tri(length, k=-window, dtype=bool)
        h, a = norm(x, p["norm_attention"]["scale"]), p["attention"]
        if c.n_kv_heads:
            kernels = [a["q"]["kernel"], *(a["kv"]["kernel"][:, i] for i in range(2))]
        else:
            kernels = [a["qkv"]["kernel"][:, i] for i in range(3)]
        q, k, v = (np.einsum("btd,dhk->bthk", h, kernel) for kernel in kernels)
        if c.qk_norm:
            q, k = norm(q, a["norm_q"]["scale"]), norm(k, a["norm_k"]["scale"])
        if c.positions == "rope":
            q, k = turn(q), turn(k)
        k, v = (np.repeat(one, c.n_heads // one.shape[2], axis=2) for one in (k, v))
        scores = np.einsum("bthk,bshk->bhts", q, k) / q.shape[-1] ** 0.5
        if c.positions == "alibi":
            distance = np.arange(length) - np.arange(length)[:, None]
            scores += alibi_slopes(c.n_heads)[:, None, None] * distance
        scores = np.where(visible, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        values = np.einsum("bhts,bshk->bthk", weights / weights.sum(-1, keepdims=True), v)
        x = x + np.einsum("bthk,hkd->btd", values, a["out"]["kernel"])
        h = norm(x, p["norm_mlp"]["scale"]) @ p["mlp"]["up"]["kernel"]
        gelu = np.asarray(jax.nn.gelu(h, approximate=False))
        h = gelu if c.activation == "gelu" else np.maximum(h, 0) ** 2
        x = x + h @ p["mlp"]["down"]["kernel"]
        found.append((np.sqrt(np.mean(x**2)), scores.max()))
    return found


@pytest.mark.parametrize("mesh", [(1, 4, 2), (2, 2, 1)], ids=str)
@pytest.mark.parametrize(
    "fields", [ALIBI, ROPE | {"model.scan_layers": False}], ids=["alibi", "rope"]
)
def test_activations_and_attention_logits_are_those_of_the_plain_formula(fields, mesh, monkeypatch):
    """With documents, over several blocks of queries, some in a loop, in microbatches."""
    monkeypatch.setattr(blocks, "QUERY_BLOCK", 12)
    monkeypatch.setattr(blocks, "LOOPS", 1)
    config = with_fields(tiny(partition={"layout": "fsdp"}), fields | {"optim.microbatches": 2})
    training, tokens = program_on(config, mesh), random_tokens(config, 0)
    documents = np.cumsum(np.random.default_rng(1).random(tokens.shape) < 0.1, axis=1)
    with jax.set_mesh(training.mesh):
        params = training.init(jax.random.key(0)).params
        for name in ("attention", "mlp"):  # larger than at first, and unlike from layer to layer
            params["blocks"][name] = jax.tree.map(
                lambda leaf: leaf * (2 + jnp.arange(len(leaf))).reshape(-1, *[1] * (leaf.ndim - 1)),
                params["blocks"][name],
            )
        batch = [x.astype(np.int32) for x in (tokens, documents)]
        batch = jax.device_put(batch, training.tokens.sharding)
        look = jax.jit(activations, static_argnums=(0, 4))
        found = jax.device_get(look(training.model, params, *batch, 2))
        params = jax.device_get(params)
    expected = plain_layers(config.model, params, tokens[:, :-1], documents[:, :-1])
    streams, logits = zip(*expected, strict=True)
    np.testing.assert_allclose(found["activation"]["blocks"], streams, rtol=1e-5)
    np.testing.assert_allclose(found["attention_logit"]["blocks"], logits, rtol=1e-4)
    assert min(np.abs(np.diff(logits))) > 0.01  # no two layers alike
