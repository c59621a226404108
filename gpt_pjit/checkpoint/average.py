"""The mean of several checkpoints of a run, one array at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gpt_pjit.checkpoint.checkpointer import read_parameter
from gpt_pjit.errors import ConfigError


def steps_to_average(saved: Sequence[int], last: int, fraction: float) -> list[int]:
    """`last` steps, evenly from those `saved` in the last `fraction` of the steps, newest included.

    Raises ConfigError where there are not so many.
    """
    newest = max(saved)
    late = [step for step in sorted(saved) if step > newest * (1 - fraction)]
    if len(late) < last:
        problem = (
            f"the last {fraction:.0%} of {newest} steps holds {len(late)} checkpoints, "
            f"{', '.join(map(str, late))}; --last={last} needs a larger --fraction, or a run with "
            "a smaller checkpoint.every and a larger checkpoint.keep"
        )
        raise ConfigError([problem], "average")
    return [late[len(late) - 1 - i * len(late) // last] for i in reversed(range(last))]


def mean_params(directory: Path, steps: Sequence[int], shapes: Any) -> Any:
    """The mean of the parameters of `steps`, float32 NumPy arrays in the tree of `shapes`.

    Holds the result and two arrays more, however many the steps are.
    """
    mean = {}
    for path, shape in flatten_dict(shapes, sep="/").items():
        total = np.zeros(shape.shape, np.float32)
        for step in steps:
            total += read_parameter(directory, step, path, shape)
        total /= len(steps)
        mean[path] = total
    return unflatten_dict(mean, sep="/")
