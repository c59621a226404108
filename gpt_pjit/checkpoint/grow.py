"""A deeper model that computes, at first, what the shallower one does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gpt_pjit.config import Config
from gpt_pjit.core.checkpointer import read_parameter
from gpt_pjit.core.errors import ConfigError

BLOCKS = "blocks/"
OUTPUTS = (  # what a block adds to the residual stream is linear in these
    "blocks/attention/out/kernel",
    "blocks/attention/out/bias",
    "blocks/mlp/down/kernel",
    "blocks/mlp/down/bias",
)


def layer_sources(old: int, new: int) -> list[int]:
    """For each of `new` layers the one of `old` that it repeats: layer i is floor(i * old / new).

    Raises ConfigError unless `new` is above `old`.
    """
    if new <= old:
        problem = (
            f"--layers={new}: the model has {old}, and only grows; try {old + max(1, old // 2)}"
        )
        raise ConfigError([problem], "grow")
    return [i * old // new for i in range(new)]


def is_copy(sources: Sequence[int]) -> np.ndarray:
    """Which layers repeat the layer before them: bool [L]."""
    return np.array([i > 0 and sources[i - 1] == source for i, source in enumerate(sources)])


def grown_params(directory: Path, step: int, shapes: Any, sources: Sequence[int]) -> Any:
    """The parameters of `step` with layers repeated, NumPy arrays.

    Copies begin with output projections of zero, so that they add nothing: the loss stays what it
    was, and the copies learn from the first step on. `shapes` are those of the shallower model.
    """
    grown = {}
    for path, shape in flatten_dict(shapes, sep="/").items():
        array = read_parameter(directory, step, path, shape)
        grown[path] = grow_array(path, array, sources) if path.startswith(BLOCKS) else array
    return unflatten_dict(grown, sep="/")


def grow_array(path: str, array_L: np.ndarray, sources: Sequence[int]) -> np.ndarray:
    """One stacked parameter of the deeper model."""
    grown_L = array_L[np.asarray(sources)]
    if path in OUTPUTS:
        grown_L[is_copy(sources)] = 0
    return grown_L


def grown_config(config: Config, sources: Sequence[int]) -> Config:
    """The config with as many layers as `sources`, and its factors by layer repeated alike."""
    old = config.model.n_layers

    def repeated(rules: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            (regex, tuple(value[s] for s in sources))
            if isinstance(value, tuple) and len(value) == old
            else (regex, value)
            for regex, value in rules
        )

    optim = replace(
        config.optim,
        decay_rules=repeated(config.optim.decay_rules),
        lr_rules=repeated(config.optim.lr_rules),
    )
    return replace(config, model=replace(config.model, n_layers=len(sources)), optim=optim)
