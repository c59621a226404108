"""The mean of several checkpoints of a run, one array at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gpt_pjit.core.checkpointer import read_parameter
from gpt_pjit.core.errors import ConfigError, Problem


def steps_to_average(saved: Sequence[int], last: int, fraction: float) -> list[int]:
    """`last` steps, evenly from those `saved` in the last `fraction` of the steps, newest included.

    Raises ConfigError where there are not so many, or that is no number or share.
    """
    problems = []
    if last < 1:
        problems.append(Problem("--last", last, "must be at least 1", "try 4"))
    if not 0 <= fraction <= 1:
        problems.append(Problem("--fraction", fraction, "must be from 0 to 1", "try 0.2"))
    if problems:
        raise ConfigError(problems, "average")
    newest = max(saved)
    reach = max(1, round(fraction * newest, 6))  # 0.9 of 1,000 steps is 900, and no more
    late = [step for step in sorted(saved) if newest - step < reach]
    if len(late) < last:
        problem = (
            f"the last {fraction:.0%} of {newest} steps holds {len(late)} of {last} checkpoints, "
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
