"""Schedules: their shapes, and that a run's length changes no step before its decay."""

import jax
import numpy as np
import optax
import pytest

from gpt_pjit.core.training import learning_rate
from tests.helpers import load_config, tiny


def rates(config, steps):
    return np.array(jax.jit(jax.vmap(learning_rate(config.optim)))(np.arange(steps)))


def schedule(name, **fields):
    shape = {"steps": 100, "warmup_steps": 9, "peak_lr": 1e-3, "final_lr_fraction": 0.2}
    return tiny(optim=shape | {"schedule": name} | fields)


def test_cosine_is_that_of_optax_to_the_bit():
    reference = optax.schedules.warmup_cosine_decay_schedule(1e-4, 1e-3, 9, 100, 2e-4)
    expected = jax.jit(jax.vmap(reference))(np.arange(100))
    np.testing.assert_array_equal(rates(schedule("cosine"), 100), expected)


@pytest.mark.parametrize(("name", "decay"), [("wsd", 20), ("linear", 91), ("constant", 0)])
def test_warm_up_peak_and_decay(name, decay):
    found = rates(schedule(name, decay_steps=decay if name == "wsd" else 0), 100)
    np.testing.assert_allclose(found[:9], 1e-3 * np.arange(1, 10) / 10, rtol=1e-6)
    np.testing.assert_array_equal(found[9 : 100 - decay], np.float32(1e-3))
    left = np.arange(decay, 0, -1) / max(
        decay, 1
    )  # 1 at the decay's first step, 1 / decay at its last
    np.testing.assert_allclose(found[100 - decay :], 1e-3 * (0.2 + 0.8 * left), rtol=1e-6)


@pytest.mark.slow  # of two programs, whose bits agree where both are optimised
def test_steps_before_the_decay_do_not_depend_on_the_length_of_the_run():
    runs = [
        schedule("wsd", decay_steps=20),
        schedule("wsd", decay_steps=50, steps=700),
        schedule("constant", steps=80),
    ]
    one, two, three = (rates(run, 80) for run in runs)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, three)


def test_d24_has_the_schedule_of_nanochat():
    """Its multiplier, after its warm-up (scripts/base_train.py, get_lr_multiplier)."""
    config, steps, warmdown = load_config("d24"), 16_000, round(0.65 * 16_000)
    at = np.arange(40, steps)
    left = (steps - at) / warmdown
    expected = np.where(at <= steps - warmdown, 1.0, left + (1 - left) * 0.05)
    found = rates(config, steps)[40:] / config.optim.peak_lr
    np.testing.assert_allclose(found, expected, rtol=1e-5)
