"""Validation of several sets: each has the loss that it has alone, and the whole is unchanged."""

import jax
import numpy as np
import pytest

from gpt_pjit.core.training import eval_step, validation_metrics
from tests.helpers import program_on, random_tokens, tiny


@pytest.mark.slow
def test_each_set_has_its_own_loss():
    config = tiny()
    program, size = program_on(config, (1, 2, 2)), config.data.batch_size
    mask = np.ones((size, config.data.sequence_length), np.float32)
    half = mask * (np.arange(mask.shape[1]) < 7)
    web = [(random_tokens(config, seed), mask, None) for seed in (0, 1)]
    books = [(random_tokens(config, 2) // 64, half, None)]
    with jax.set_mesh(program.mesh):
        params = program.init(jax.random.key(0)).params

        def metrics(**sets):
            return validation_metrics(program.model, params, sets, size, 0.25)

        both, one, other = metrics(web=web, books=books), metrics(web=web), metrics(books=books)
        totals, weights = np.zeros(2), program.model.weights(params)
        for tokens, counted, _ in (*web, *books):
            rows = jax.device_put((tokens, counted), program.tokens.sharding)
            totals += jax.device_get(eval_step(program.model, weights, *rows))
    assert set(one) == {"validation/loss", "validation/perplexity", "validation/bits_per_byte"}
    assert both["validation/loss/web"] == one["validation/loss"]
    assert both["validation/loss/books"] == other["validation/loss"]
    assert both["validation/loss"] == totals[0] / totals[1]
    assert set(both) == {*one, "validation/loss/web", "validation/loss/books"}
