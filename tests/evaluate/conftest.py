"""A run with random parameters, and models that are a table of bigrams."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gpt_pjit.core.model import forward
from gpt_pjit.core.sharding import BATCH_AXES, make_mesh
from gpt_pjit.trained import load_trained
from tests.helpers import make_workdir, tiny


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A workdir, and the parameters of its newest step."""
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    return folder, make_workdir(folder, tiny(), steps=(2, 4))[4]


@pytest.fixture(scope="session")
def workdir(run):
    return run[0]


@pytest.fixture(scope="session")
def trained(workdir):
    return load_trained(workdir)


@pytest.fixture(scope="session")
def plain(run):
    """`plain(request)`: nll and greedy by one text on one device, as it is, and float64."""
    with jax.set_mesh(make_mesh((1, 1, 1), jax.devices()[:1])):
        params = jax.tree.map(jnp.asarray, run[1])
    logits_of = jax.jit(lambda params, tokens: forward(tiny().model, params, tokens))

    def compute(request):
        tokens = np.array(request.tokens, np.int32)
        with jax.set_mesh(make_mesh((1, 1, 1), jax.devices()[:1])):
            logits = np.asarray(logits_of(params, jnp.asarray(tokens[None, :-1]))[0], np.float64)
        targets = tokens[1:]
        nll = np.logaddexp.reduce(logits, -1) - logits[np.arange(len(targets)), targets]
        greedy = logits.argmax(-1) == targets
        return nll[-request.scored :], greedy[-request.scored :]

    return compute


def with_forward(trained, forward):
    """`trained` with another forward pass."""
    model = copy.copy(trained.model)
    vars(model)["forward"] = forward  # the class is frozen
    return dataclasses.replace(trained, model=model)


@pytest.fixture
def with_logits(trained):
    """`with_logits(table, change)`: a model whose logits are `change` of the last byte's row."""

    def build(table_VV, change=lambda logits: logits):
        def table_forward(weights, tokens_BT):
            logits = weights.at[tokens_BT].get(out_sharding=P(BATCH_AXES, None, None))
            return change(logits)

        with jax.set_mesh(trained.mesh):
            weights = jax.device_put(np.asarray(table_VV, np.float32), P(None, None))
        return with_forward(dataclasses.replace(trained, weights=weights), table_forward)

    return build
