"""Models that write varied text, on a mesh of a few devices."""

from pathlib import Path

import jax
import numpy as np
import pytest

from gpt_pjit.core.sharding import paths_and_leaves
from gpt_pjit.core.tokens import load_tokenizer
from gpt_pjit.trained import Trained
from tests.helpers import program_on, tiny, with_fields

LEARNED = 96  # positions, where they are learned
# Ten times the kernels of a fresh model, whose greedy text would repeat one token.
STD = {"kernel": 0.2, "embedding": 0.02, "bias": 0.02, "scale": 0.0}


def model(shape: tuple[int, int, int] = (1, 1, 1), layout: str = "zero", **fields) -> Trained:
    config = tiny(model={"vocab_size": 264, "scan_layers": False} | fields)
    config = with_fields(config, {"partition.layout": layout, "data.sequence_length": LEARNED})
    program = program_on(config, shape)
    draw = np.random.default_rng(0)
    leaves = []
    for path, leaf in paths_and_leaves(program.state.params):
        kind = path.rpartition("/")[2]
        values = (kind == "scale") + STD[kind] * draw.standard_normal(leaf.shape)
        leaves.append(jax.device_put(values.astype(np.float32), leaf.sharding))
    params = jax.tree.unflatten(jax.tree.structure(program.state.params), leaves)
    with jax.set_mesh(program.mesh):
        weights, tokenizer = program.model.weights(params), load_tokenizer("bytes")
        return Trained(program.model, weights, tokenizer, config, Path("none"), 0)


@pytest.fixture(scope="session")
def trained() -> Trained:
    return model()
