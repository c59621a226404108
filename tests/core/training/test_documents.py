"""Masked documents: packed in a row, each has the loss that it has alone, and sees no other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_pjit.core.model import forward, init_params
from gpt_pjit.core.sharding import make_mesh
from gpt_pjit.core.tokens.stream import segments
from gpt_pjit.core.training import eval_step
from tests.helpers import BLOCKS, program_on, random_tokens, tiny

EOT = 0
LENGTHS = (1, 7, 2, 12, 11)  # 33 tokens, a row of `tiny`


def packed(config, seed):
    """[B, T + 1] tokens, each row LENGTHS documents rotated, and their segments."""
    tokens = random_tokens(config, seed) % 511 + 1
    for row, line in enumerate(tokens):
        lengths = LENGTHS[row % len(LENGTHS) :] + LENGTHS[: row % len(LENGTHS)]
        line[np.cumsum(lengths) - 1] = EOT
    return tokens, segments(tokens, EOT)


def documents(row):
    return np.split(row, np.flatnonzero(row == EOT)[:-1] + 1)


@pytest.fixture(
    params=[
        "alibi",
        *(
            pytest.param(block, marks=[pytest.mark.slow, pytest.mark.long])
            for block in ("gpt2", "llama", "nanochat")
        ),
    ]
)
def config(request):
    model = BLOCKS[request.param]
    return tiny(model=model, data={"batch_size": 8}, optim={"warmup_steps": 1})


@pytest.fixture
def logits_of(config):
    """`logits_of(params, tokens, segments=None)` on one device."""
    run = jax.jit(lambda params, *rows: forward(config.model, params, rows[0], segments_BT=rows[1]))

    def call(*arguments):
        with jax.set_mesh(make_mesh((1, 1, 1), jax.devices()[:1])):
            return jax.device_get(run(*arguments))

    return call


def test_packed_loss_is_that_of_the_documents_alone(config, logits_of):
    tokens, document = packed(config, 0)
    program = program_on(config, (1, 4, 2))
    with jax.set_mesh(program.mesh):
        params = program.init(jax.random.key(1)).params
        batch = jax.device_put((tokens, document), program.tokens.sharding)
        mask = (document[:, 1:] == document[:, :-1]).astype(np.float32)
        mask = jax.device_put(mask, program.tokens.sharding)
        model = program.model
        nats, count = eval_step(model, model.weights(params), batch[0], mask, batch[1])
        state = program.init(jax.random.key(1))
        _, metrics = program.train_step(state, *batch)
    expected, predictions = 0.0, 0
    params = jax.device_get(params)
    for row in tokens:
        for alone in documents(row):
            if len(alone) > 1:
                logits = logits_of(params, alone[None, :-1], None)[0].astype(np.float64)
                lse = np.log(np.exp(logits).sum(axis=-1))
                expected += float(np.sum(lse - logits[np.arange(len(alone) - 1), alone[1:]]))
                predictions += len(alone) - 1
    assert int(count) == predictions
    assert float(nats) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["train/loss"]) == pytest.approx(expected / predictions, rel=1e-5)


def test_no_gradient_crosses_from_document_to_document(config):
    """Words of the first document get no gradient from the logits of words in the second."""
    first, second = np.arange(1, 17), np.arange(17, 33)
    tokens = np.concatenate([first, second])[None]
    document = np.repeat([[0, 1]], 16, axis=1)

    def of_second(embedding, segments_BT):
        changed = params | {"embed": {"embedding": embedding}}
        logits = forward(config.model, changed, jnp.asarray(tokens), None, segments_BT=segments_BT)
        return jnp.sum(jnp.sin(logits[:, 16:, 17:33]))

    with jax.set_mesh(make_mesh((1, 1, 1), jax.devices()[:1])):
        params = init_params(config.model, 32, jax.random.key(2))
        embedding = params["embed"]["embedding"]
        gradient_of = jax.jit(jax.grad(of_second))
        gradient = gradient_of(embedding, jnp.asarray(document))
        unmasked = gradient_of(embedding, None)
    assert np.all(gradient[1:17] == 0)
    assert np.all(np.any(gradient[17:33] != 0, axis=-1))
    assert np.any(unmasked[1:17] != 0)


@pytest.mark.slow
def test_masked_training_is_the_same_on_every_mesh_and_in_microbatches():
    losses = []
    for shape, microbatches in (((1, 1, 1), 1), ((2, 2, 1), 2)):
        config = tiny(data={"batch_size": 8}, optim={"microbatches": microbatches})
        program = program_on(config, shape)
        with jax.set_mesh(program.mesh):
            state = program.init(jax.random.key(0))
            for step in range(3):
                batch = jax.device_put(packed(config, step), program.tokens.sharding)
                state, metrics = program.train_step(state, *batch)
        losses.append([float(value) for value in metrics.values()])
    np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=1e-5)
