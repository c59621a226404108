"""What the protections of a run cost: saves, fingerprints, and the checks of each step.

    python -m tests.benchmarks.saving [--config=124m] [--rows=2] [--length=512] [--save_only]

The model of a config on one device per core, with few short sequences a step, which makes every
cost larger beside the step than it is in training. A save every 100 steps costs the seconds for
which it holds up the loop, and those by which the steps are slower until it is on disk. With
`--save_only`: seconds until the state is on disk, written in one piece as after a signal.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

EVERY, STEPS, CALLS = 100, 6, 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--config", default="124m")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--save_only", action="store_true")
    flags = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    from gpt_pjit.core.cores import usable_cores
    from tests.helpers import load_config, program_on, with_fields

    devices = min(usable_cores(), flags.rows)
    jax.config.update("jax_num_cpu_devices", devices)
    sizes = {"data.batch_size": flags.rows, "data.sequence_length": flags.length}
    fields = sizes | {"optim.microbatches": 1, "model.dtype": "float32"}
    config = with_fields(load_config(flags.config), fields)
    shape = (1, devices, 1)
    program = program_on(config, shape)
    with jax.set_mesh(program.mesh):
        if flags.save_only:
            measure_save(program)
            return
        measure(config, program, program_on(config, shape))


def seconds_of(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure_save(program: Any) -> None:
    import jax

    from gpt_pjit.core.checkpoints import write_state

    state = jax.block_until_ready(program.init(jax.random.key(0)))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    with tempfile.TemporaryDirectory() as folder:
        seconds = seconds_of(lambda: write_state(Path(folder) / "checkpoints", 1, state))
    print(f"{size / 1e9:.1f} GB on disk after {seconds:.1f} s, {size / 1e6 / seconds:.0f} MB/s")


def measure(config: Any, program: Any, unchecked: Any) -> None:
    import jax

    from gpt_pjit.core.checkpoints import Checkpointer, fingerprints
    from gpt_pjit.core.runtime import Watch
    from tests.helpers import random_tokens

    state = program.init(jax.random.key(0))
    tokens = jax.device_put(random_tokens(config, 0), program.tokens.sharding)

    def step(of: Any = program) -> None:
        nonlocal state
        state, metrics = of.train_step(state, tokens)
        jax.block_until_ready((state, metrics))

    step()
    with mock.patch("gpt_pjit.core.training.step.jnp.isfinite", return_value=True):
        step(unchecked)
    with_checks, without = [], []
    for _ in range(STEPS):
        with_checks.append(seconds_of(step))
        without.append(seconds_of(lambda: step(unchecked)))
    usual = statistics.median(with_checks)
    print(f"a step: {usual:.2f} s, the median of {STEPS}")

    fingerprints(state)  # compiles
    print_it = min(seconds_of(lambda: fingerprints(state)) for _ in range(3))
    with tempfile.TemporaryDirectory() as folder, Watch(3600) as watch:
        saver = Checkpointer(Path(folder) / "checkpoints", keep=1)
        saver.save(1, state)  # opens Orbax
        saver.wait()
        start = time.perf_counter()
        held_up = seconds_of(lambda: saver.save(2, state))
        slower = 0.0
        while not saver._complete.is_set():
            slower += max(seconds_of(step) - usual, 0)
        saver.wait()
        durable = time.perf_counter() - start

        def check() -> None:
            for _ in range(CALLS):
                watch.tick()
                saver.poll()

        checks = seconds_of(check) / CALLS
        saver.close()
    cost = held_up + slower
    print(
        f"a save: holds up the loop for {held_up:.2f} s, slows the steps beside it by {slower:.2f} "
        f"s; on disk after {durable:.2f} s\n"
        f"  every {EVERY} steps: {cost / (EVERY * usual + cost):.2%} of the loop\n"
        f"  fingerprints: {print_it:.2f} s, {print_it / durable:.1%} of the save"
    )
    ratios = [a / b for a, b in zip(with_checks, without, strict=True)]
    print(
        f"checks of a step: {checks * 1e6:.1f} us on the host, {checks / usual:.4%} of it; "
        f"on the devices {statistics.median(ratios) - 1:+.2%} "
        f"({min(ratios) - 1:+.2%} to {max(ratios) - 1:+.2%})"
    )
    for name in ("flops", "bytes accessed"):
        both = [of.train_step.lower(of.state, of.tokens).compile() for of in (program, unchecked)]
        costs = [compiled.cost_analysis()[name] for compiled in both]
        print(f"  {name} by the compiler: {costs[0] / costs[1] - 1:+.3%}")


if __name__ == "__main__":
    main()
