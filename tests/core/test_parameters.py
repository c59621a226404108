"""The operations per token that utilisation is computed from, against those of the program."""

import math

import jax
import jax.numpy as jnp
import pytest

from gpt_pjit.core.model import count_params, forward, param_shapes
from gpt_pjit.core.parameters import flops_per_token
from gpt_pjit.core.sharding import make_mesh
from tests.helpers import BLOCKS, load_config, tiny

LENGTH = 32


def products(jaxpr, times=1):
    """Multiplications and additions of every matrix product; by platform, those of the default."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (summed, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[d] for d in summed)
            yield 2 * times * depth * equation.outvars[0].aval.size
        inner = times * (equation.params["length"] if equation.primitive.name == "scan" else 1)
        for name, value in equation.params.items():
            value = value[-1:] if name == "branches" else value
            for part in value if isinstance(value, tuple) else (value,):
                if hasattr(part, "eqns") or hasattr(part, "jaxpr"):
                    yield from products(getattr(part, "jaxpr", part), inner)


@pytest.mark.parametrize("block", ["alibi", "llama", "qwen", "neox"])
def test_flops_are_three_times_those_of_the_forward_pass(block):
    """But for norms and biases, a hundredth here, and with the keys that causality hides.

    The forward pass makes the scores twice: the second time is no work of the model.
    """
    c = tiny(model=BLOCKS[block] | {"d_model": 256, "vocab_size": 1000, "remat": "none"}).model
    shapes = param_shapes(c, LENGTH)
    with jax.set_mesh(make_mesh((1, 1, 1), jax.devices()[:1])):
        tokens = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)
        jaxpr = jax.make_jaxpr(lambda *args: forward(c, *args))(shapes, tokens)
    again = c.n_layers * 2 * LENGTH**2 * c.sizes["H"] * c.sizes["K"]
    counted = 3 * (sum(products(jaxpr.jaxpr)) - again) / LENGTH
    assert flops_per_token(c, count_params(shapes), LENGTH) == pytest.approx(counted, rel=0.01)


def test_windows_spare_the_keys_that_no_query_sees():
    c = load_config("d24").model
    n_params = count_params(param_shapes(c, 2048))
    of_weights = 6 * (n_params - 32768 * 1536)
    mean_keys = (3 * 1024 + 2048) / 4
    assert flops_per_token(c, n_params, 2048) == of_weights + 12 * 24 * 1536 * mean_keys
