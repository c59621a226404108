import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_pjit.core.model import forward, init_params, token_nll
from gpt_pjit.core.model.layers import Norm, activate
from gpt_pjit.core.model.loss import SAFE, head_losses, logits
from gpt_pjit.core.model.positions import (
    _rotate_by_product,
    _rotate_halves,
    alibi_bias,
    alibi_slopes,
    rotary_frequencies,
    rotate,
    rotation,
)
from gpt_pjit.core.sharding import make_mesh
from gpt_pjit.core.validation import CHOICES
from tests.helpers import BLOCKS, tiny, with_fields

LENGTH = 16


@pytest.fixture
def one_device():
    with jax.set_mesh(make_mesh((1, 1, 1), jax.devices()[:1])):
        yield


def logits_and_params(config, tokens=None, key=None):
    params = init_params(config.model, LENGTH, jax.random.key(0))
    if tokens is None:
        tokens = np.arange(LENGTH, dtype=np.int32)[None] % config.model.vocab_size
    return forward(config.model, params, jnp.asarray(tokens), key), params


def test_alibi_slopes_are_those_of_the_paper():
    np.testing.assert_allclose(alibi_slopes(8), [2.0**-i for i in range(1, 9)])
    np.testing.assert_allclose(alibi_slopes(16), [2.0 ** (-i / 2) for i in range(1, 17)], rtol=1e-6)
    twelve = [2.0**-i for i in range(1, 9)] + [2.0**-e for e in (0.5, 1.5, 2.5, 3.5)]
    np.testing.assert_allclose(alibi_slopes(12), twelve, rtol=1e-6)


def test_alibi_bias_is_the_papers_up_to_a_constant_for_each_query():
    distance = np.arange(LENGTH)[None, :] - np.arange(LENGTH)[:, None]  # key - query
    paper_HTS = alibi_slopes(6)[:, None, None] * distance
    difference = alibi_bias(6, LENGTH) - paper_HTS
    np.testing.assert_allclose(
        difference, np.broadcast_to(difference[..., :1], difference.shape), atol=1e-5
    )


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize(
    "block",
    [
        *("alibi", "llama"),
        *(
            pytest.param(b, marks=pytest.mark.slow)
            for b in ("nanochat", "gpt2", "qwen", "neox", "grouped", "none")
        ),
    ],
)
def test_no_position_sees_a_later_one(block):
    config = tiny(model=BLOCKS.get(block, {"positions": "none", "bias": "all"}))
    params = init_params(config.model, LENGTH, jax.random.key(0))
    embedding = params["embed"]["embedding"]
    tokens = jnp.arange(LENGTH, dtype=jnp.int32)[None]  # each id once: row i is position i

    def logit(embedding, position):
        untied = params | {"embed": {"embedding": embedding}}
        hidden = forward(config.model, untied, tokens)
        return jnp.sum(hidden[0, position, 100:])  # ids that the input does not use

    gradient_of = jax.jit(jax.grad(logit))
    for position in (0, LENGTH // 2, LENGTH - 1):
        gradient = gradient_of(embedding, position)
        influence = np.abs(np.asarray(gradient[:LENGTH])).sum(axis=-1)
        assert (influence[: position + 1] > 0).all()
        assert (influence[position + 1 :] == 0).all()


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_initial_loss_is_that_of_a_uniform_guess(dtype):
    config = tiny(model={"dtype": dtype, "vocab_size": 2048})
    tokens = np.random.default_rng(0).integers(0, 2048, (8, LENGTH + 1), np.int32)
    logits, _ = logits_and_params(config, tokens[:, :-1])
    loss = float(token_nll(logits, jnp.asarray(tokens[:, 1:])).mean())
    assert abs(loss - np.log(2048)) < 0.05


@pytest.mark.usefixtures("one_device")
def test_initialisation_is_gpt2s():
    config = tiny(model={"n_layers": 8, "d_model": 256, "d_ff": 1024})
    params = init_params(config.model, LENGTH, jax.random.key(0))
    blocks = params["blocks"]
    assert np.std(params["embed"]["embedding"]) == pytest.approx(0.02, rel=0.02)
    assert np.std(blocks["attention"]["qkv"]["kernel"]) == pytest.approx(0.02, rel=0.02)
    for residual in (blocks["attention"]["out"], blocks["mlp"]["down"]):
        assert np.std(residual["kernel"]) == pytest.approx(0.02 / 16**0.5, rel=0.02)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    layers = np.asarray(blocks["mlp"]["up"]["kernel"])
    assert not np.array_equal(layers[0], layers[1])


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("block", ["alibi", "nanochat"])
def test_scanned_unrolled_and_rematerialised_are_the_same_function(block):
    dropouts = {"dropout_residual": 0.1, "dropout_attention": 0.1}
    base = tiny(model=BLOCKS[block] | dropouts)
    results = []
    for fields in ({}, {"scan_layers": False}, {"remat": "full"}, {"remat": "selective"}):
        config = with_fields(base, {f"model.{name}": value for name, value in fields.items()})
        params = init_params(config.model, LENGTH, jax.random.key(0))
        tokens = jnp.arange(LENGTH, dtype=jnp.int32)[None]

        def loss(params, config=config, tokens=tokens):
            return token_nll(
                forward(config.model, params, tokens, jax.random.key(1)), tokens
            ).mean()

        results.append(jax.jit(jax.value_and_grad(loss))(params))
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), results[0], other)


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("name", ["dropout_residual", "dropout_attention", "dropout_embedding"])
def test_each_dropout_acts_only_with_a_key(name):
    plain, _ = logits_and_params(tiny())
    config = tiny(model={name: 0.3})
    without_key, _ = logits_and_params(config)
    with_key, _ = logits_and_params(config, key=jax.random.key(0))
    np.testing.assert_array_equal(plain, without_key)
    assert np.abs(np.asarray(with_key - plain)).max() > 1e-4


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("cap", [0.0, 15.0])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_losses_of_a_head_and_their_gradients_match_the_plain_formula(cap, z_loss):
    x, head = (jax.random.normal(jax.random.key(n), s) for n, s in enumerate([(2, 3, 8), (50, 8)]))
    targets = jnp.array([[1, 49, 0], [7, 7, 30]], jnp.int32)

    def plain(x, head):
        logits = 5 * x @ head.T
        logits = cap * jnp.tanh(logits / cap) if cap else logits
        nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
        return nll, jax.nn.logsumexp(logits, axis=-1)

    def mine(x, head):
        return head_losses(cap, 5 * x, head, targets)

    def loss(of, x, head):
        nll, lse = of(x, head)
        return jnp.sum(nll**2) + (z_loss * jnp.sum(lse**2) if z_loss else 0)

    for found, expected in zip(mine(x, head), plain(x, head), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    found, expected = (jax.grad(loss, (1, 2))(of, x, head) for of in (mine, plain))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected
    )
    nll = token_nll(logits(5 * x, head, cap), targets, cap)
    np.testing.assert_array_equal(nll, mine(x, head)[0])


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("cap", [SAFE, 100.0])
def test_losses_of_logits_at_their_cap(cap):
    logits_NV = cap * np.array([[1.0], [-1.0], [-1.0]]) * np.ones(200_000)  # float64
    logits_NV[2, 3] = cap
    exact = np.logaddexp.reduce(logits_NV, axis=-1) - logits_NV[:, 3]
    found = token_nll(jnp.asarray(logits_NV, jnp.float32), jnp.full(3, 3), cap)
    np.testing.assert_allclose(found, exact, atol=np.spacing(np.float32(cap)))


ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
    "relu2": lambda x: jax.nn.relu(x) ** 2,
    "swiglu": jax.nn.silu,
}


@pytest.mark.parametrize("name", CHOICES["model.activation"])
def test_activations(name):
    x = jnp.linspace(-6, 6, 101)
    np.testing.assert_allclose(activate(name, x), ACTIVATIONS[name](x), atol=1e-6)


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("n_pairs", [3, 8])
def test_the_rotation_of_a_tpu_and_its_gradient_are_those_of_halves(dtype, n_pairs):
    """To the bit: a swap by a product adds zeros; a gradient is rotated back."""
    x, target = jax.random.normal(jax.random.key(0), (2, 2, 3, LENGTH, 16), dtype)
    angles = jax.random.normal(jax.random.key(1), (1, LENGTH, n_pairs))
    turn = (jnp.cos(angles), jnp.sin(angles))
    plain, pull = jax.vjp(lambda x: _rotate_halves(x, *turn), x)
    ours, ours_pull = jax.vjp(lambda x: rotate(x, turn), x)
    expected = [plain, plain, *pull(target)]
    found = [_rotate_by_product(x, *turn), ours, *ours_pull(target)]
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_rotated_scores_depend_on_the_distance_alone():
    config = tiny(model={"positions": "rope", "rope_fraction": 0.5}).model
    q, k = jax.random.normal(jax.random.key(0), (2, 16))
    places = jnp.arange(LENGTH)[None]
    turned = [rotate(jnp.tile(x, (1, 1, LENGTH, 1)), rotation(config, places)) for x in (q, k)]
    scores = jnp.einsum("hbtk,hbsk->ts", *turned)
    for distance in range(-LENGTH + 1, LENGTH):
        along = jnp.diagonal(scores, distance)
        np.testing.assert_allclose(along, along[0], atol=1e-5)
    assert np.abs(np.diff(scores[0])).min() > 1e-3  # and on it they do depend
    np.testing.assert_array_equal(turned[0][0, 0, :, 8:], jnp.tile(q[8:], (LENGTH, 1)))


def test_llama_3_slows_low_frequencies_alone():
    """As published for 8192 trained positions: wavelengths to 2048 stay, beyond 8192 are 8 times
    as long, and between the two the change is smooth.
    """
    fields = {"positions": "rope", "rope_theta": 5e5, "head_size": 128}
    before, after = (
        rotary_frequencies(tiny(model=fields | {"rope_scaling": scaling}).model)[0, 0]
        for scaling in ((), (8.0, 1.0, 4.0, 8192))
    )
    wavelengths = 2 * np.pi / before
    slower = before / after
    np.testing.assert_allclose(slower[wavelengths < 2048], 1, rtol=1e-6)
    np.testing.assert_allclose(slower[wavelengths > 8192], 8, rtol=1e-6)
    assert (np.diff(slower) >= -1e-6).all()
    assert ((slower > 1.01) & (slower < 7.99)).any()


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("norm_gain", [True, False])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norms_match_the_plain_formula(kind, norm_gain):
    c = tiny(model={"norm": kind, "norm_gain": norm_gain, "norm_epsilon": 1e-3}).model
    x = 2 + jax.random.normal(jax.random.key(0), (2, 3, 8))
    norm = Norm(c, 8, bias=True)
    assert (norm.scale is not None, norm.bias is not None) == (
        norm_gain,
        norm_gain and kind == "layer",
    )
    centred = x - x.mean(axis=-1, keepdims=True) if kind == "layer" else x
    expected = centred / jnp.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-3)
    if norm_gain:
        gain = jnp.arange(1.0, 9)
        norm.scale[...], expected = gain, expected * gain[None, None]
    np.testing.assert_allclose(norm(x), expected, atol=1e-4)
