"""What watching a run costs: microseconds a step of everything that a run logs, over a step's time.

    python -m tests.benchmarks.watching

In turn: the loop of a run around a step that takes no time, with the log of a run and without one.
The step of the quickstart is then timed in the same process. A line every 10 steps, and TensorBoard
too; without norms by layer, which cost a step each time.
"""

import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp

from gpt_pjit.core.runtime import StepLog, Timeline, Watch, metrics
from tests.helpers import load_config, program_on, timed_steps, with_fields

TURNS, STEPS = 7, 1000
STEP_OF_580M = 1.73  # seconds, on a v3-32, by its plan


def seconds_of(log: StepLog | None, steps: range) -> float:
    """Seconds a step of the loop, with a log or without."""
    found = {"train/loss": jnp.float32(2), "train/grad_norm": jnp.float32(1)}
    jax.block_until_ready(found)
    start = time.perf_counter()
    for step, _ in enumerate(log.waiting(steps) if log else steps, steps.start):
        if log is None:
            jax.device_get(found)
            continue
        with log.pace.part("dispatch"):
            pass
        log.push(step, found)
    return (time.perf_counter() - start) / len(steps)


def step_of_the_quickstart() -> float:
    config = load_config("quickstart")
    return statistics.median(timed_steps(program_on(config, (1, 1, 1)), config, 20)[3:])


def main() -> None:
    config = with_fields(load_config("quickstart"), {"optim.steps": 10**9})
    costs = []
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(metrics, "read_run", return_value=(None, {"starts": [{}]})),
        Watch(60) as watch,
    ):
        log = StepLog(config, Path(folder), 1_000_000, 0, Timeline(), watch)
        seconds_of(log, range(1, 50))
        for turn in range(TURNS):
            steps = range(50 + turn * STEPS, 50 + (turn + 1) * STEPS)
            costs.append(seconds_of(log, steps) - seconds_of(None, steps))
        log.close()
    cost = statistics.median(costs)
    print(f"{cost * 1e6:.0f} us a step ({min(costs) * 1e6:.0f} to {max(costs) * 1e6:.0f})")
    for name, step in (("quickstart", step_of_the_quickstart()), ("580m, v3-32", STEP_OF_580M)):
        print(f"{name}: {cost / step:.3%} of a step of {step * 1e3:,.0f} ms")


if __name__ == "__main__":
    main()
