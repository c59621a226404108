"""Parameters made of others: the mean of several steps, and a deeper model from one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gpt_pjit.checkpoint_arrays import read_parameter
from gpt_pjit.config import Config, replaced
from gpt_pjit.core.errors import ConfigError

OUTPUTS = (  # what a block adds to the residual stream is linear in these
    "blocks/attention/out/kernel",
    "blocks/attention/out/bias",
    "blocks/mlp/down/kernel",
    "blocks/mlp/down/bias",
)


def steps_to_average(saved: Sequence[int], last: int, fraction: float) -> list[int]:
    """`last` steps spread evenly over those `saved` in the last `fraction` of the run, the newest
    included. Raises ConfigError where there are fewer.
    """
    newest = max(saved)
    reach = max(1, round(fraction * newest, 6))  # 0.9 of 1,000 steps is 900, not 900.0000001
    late = [step for step in sorted(saved) if newest - step < reach]
    if len(late) < last:
        has = f"the last {fraction:.0%} of {newest} steps has {len(late)} checkpoints, not {last}"
        raise ConfigError([f"{has}; use a larger --fraction or a smaller --last"], "average")
    return [late[len(late) - 1 - i * len(late) // last] for i in reversed(range(last))]


def mean_params(directory: Path, steps: Sequence[int], shapes: Any) -> Any:
    """The mean of the parameters of `steps`, float32 NumPy arrays in the tree of `shapes`.

    Holds the result and two more arrays, however many steps there are.
    """
    mean = {}
    for path, shape in flatten_dict(shapes, sep="/").items():
        total = np.zeros(shape.shape, np.float32)
        for step in steps:
            total += read_parameter(directory, step, path, shape)
        total /= len(steps)
        mean[path] = total
    return unflatten_dict(mean, sep="/")


def layer_sources(old: int, new: int) -> list[int]:
    """Which of `old` layers each of `new` layers repeats: layer i repeats floor(i * old / new)."""
    if new < old:
        problem = f"--layers={new}: the model has {old}, and can only grow; try {old + old // 2}"
        raise ConfigError([problem], "grow")
    return [i * old // new for i in range(new)]


def is_copy(sources: Sequence[int]) -> np.ndarray:
    """Which layers repeat the layer before them: bool [L]."""
    return np.array([i > 0 and sources[i - 1] == source for i, source in enumerate(sources)])


def grown_params(directory: Path, step: int, shapes: Any, sources: Sequence[int]) -> Any:
    """The parameters of `step` with layers repeated, NumPy arrays; `shapes` are before growing.

    Copies start with output projections of zero, so that they add nothing: the loss stays what it
    was, and the copies learn from the first step on.
    """
    grown = {}
    for path, shape in flatten_dict(shapes, sep="/").items():
        array = read_parameter(directory, step, path, shape)
        if path.startswith("blocks/"):
            array = array[np.asarray(sources)]
            if path in OUTPUTS:
                array[is_copy(sources)] = 0
        grown[path] = array
    return unflatten_dict(grown, sep="/")


def grown_config(config: Config, sources: Sequence[int]) -> Config:
    """The config with as many layers as `sources`; what it has by layer is repeated too."""

    def repeated(factor: Any) -> Any:
        by_layer = isinstance(factor, tuple) and len(factor) == config.model.n_layers
        return tuple(factor[s] for s in sources) if by_layer else factor

    rules = {
        name: tuple((regex, repeated(factor)) for regex, factor in getattr(config.optim, name))
        for name in ("decay_rules", "lr_rules")
    }
    windows = config.model.windows
    model = {
        "model.n_layers": len(sources),
        "model.windows": tuple(windows[s % len(windows)] for s in sources) if windows else (),
    }
    return replaced(config, {f"optim.{name}": value for name, value in rules.items()} | model)
