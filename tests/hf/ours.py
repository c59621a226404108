"""What our model computes of the tokens that transformers is asked about too."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_pjit.checkpoint_arrays import derived_workdir, read_arrays
from gpt_pjit.config import Config
from gpt_pjit.core.checkpoints import saved_steps, write_state
from gpt_pjit.core.model import forward, param_shapes
from gpt_pjit.core.runtime import read_run
from gpt_pjit.core.sharding import make_mesh
from gpt_pjit.core.tokens import load_tokenizer


def logits_of(workdir) -> Callable[[np.ndarray], np.ndarray]:
    """`logits(tokens)`, float32 [B, T, V], of the newest step; products in float32, one device."""
    config, _ = read_run(workdir)
    model = replace(config.model, dtype="float32")
    directory = workdir / "checkpoints"
    shapes = {"params": param_shapes(model, config.data.sequence_length)}
    params = read_arrays(directory, saved_steps(directory)[-1], shapes)["params"]
    mesh = make_mesh((1, 1, 1), jax.devices()[:1])
    compiled = jax.jit(lambda params, tokens: forward(model, params, tokens))

    def logits(tokens: np.ndarray) -> np.ndarray:
        with jax.set_mesh(mesh):
            return np.asarray(compiled(params, jnp.asarray(tokens)))

    return logits


def greedy(logits: Callable[[np.ndarray], np.ndarray], tokens: np.ndarray, n_new: int):
    """`n_new` ids after each row, each the likeliest; recomputed token by token."""
    length = tokens.shape[1]
    rows = np.zeros((len(tokens), length + n_new), np.int32)
    rows[:, :length] = tokens
    for place in range(length, length + n_new):
        rows[:, place] = logits(rows)[:, place - 1].argmax(axis=-1)  # causal: zeros after it
    return rows[:, length:]


def write_run(
    folder: Any, config: Config, steps: Sequence[int] = (1,), tokenizer: str = "bytes"
) -> dict[int, Any]:
    """A workdir with random parameters, and no optimizer state, at each of `steps`; compiles
    nothing. Returns the parameters of each step.
    """
    loaded = load_tokenizer(tokenizer)
    shapes = param_shapes(config.model, config.data.sequence_length)
    made = {}
    source = {"kind": "import", "from": "a/test"}
    with derived_workdir(folder, config, loaded, source) as draft:
        for step in steps:
            random = np.random.default_rng(step)
            made[step] = jax.tree_util.tree_map_with_path(
                lambda path, s, random=random: (
                    0.1 * random.standard_normal(s.shape, np.float32)
                    + np.float32(path[-1].key == "scale")
                ),  # gains are around 1
                shapes,
            )
            write_state(draft / "checkpoints", step, {"params": made[step]})
    return made
