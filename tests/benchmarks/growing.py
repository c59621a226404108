"""Ways to make a model deeper: loss right after, and after training on, with fresh moments of the
optimizer and with repeated ones.

    python -m tests.benchmarks.growing --run=runs/quickstart --step=400 --layers=8 --steps=200
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gpt_pjit.checkpoint.combine import OUTPUTS, grown_config, is_copy, layer_sources
from gpt_pjit.config import Config
from gpt_pjit.core.checkpoints import restore
from gpt_pjit.core.runtime import global_batch, read_run
from gpt_pjit.core.sharding import make_mesh
from gpt_pjit.core.tokens import held_out_batches, open_data, train_batches
from gpt_pjit.core.training import Training, TrainState, build_training, validation_metrics
from gpt_pjit.trained import start_devices

BATCHES = 40  # of validation


def ways(old: int, new: int) -> dict[str, tuple[list[int], np.ndarray]]:
    """Name: the layer that each layer repeats, and a factor on its output projections."""
    in_order, again = layer_sources(old, new), [i % old for i in range(new)]
    copies = np.bincount(in_order)[in_order]
    return {
        "each layer repeated": (in_order, np.ones(new)),
        "the stack repeated": (again, np.ones(new)),
        "each repeated, outputs shared": (in_order, 1 / copies),
        "each repeated, copies' outputs 0": (in_order, np.where(is_copy(in_order), 0.0, 1.0)),
        "the stack repeated, copies' outputs 0": (again, np.where(np.arange(new) < old, 1.0, 0.0)),
    }


def grow(tree: Any, sources: list[int], factors: np.ndarray) -> Any:
    grown = {}
    for path, array in flatten_dict(jax.device_get(tree), sep="/").items():
        if path.startswith("blocks/"):
            array = array[np.asarray(sources)]
            if path in OUTPUTS:
                array = (array.T * factors.astype(np.float32)).T
        grown[path] = array
    return unflatten_dict(grown, sep="/")


def like(arrays: Any, target: Any) -> Any:
    return jax.tree.map(lambda a, t: jax.device_put(a, t.sharding), arrays, target)


def repeated_moments(old: TrainState, new: TrainState, sources: list[int]) -> Any:
    """The optimizer state of `new` with the moments of `old`; Adam's is second in the chain."""
    clip, (adam, *rest) = new.opt_state
    was, ones = old.opt_state[1][0], np.ones(len(sources))
    mu, nu = (like(grow(tree, sources, ones), adam.mu) for tree in (was.mu, was.nu))
    count = jax.device_put(np.asarray(was.count), adam.count.sharding)
    return (clip, (adam._replace(count=count, mu=mu, nu=nu), *rest))


def train_on(
    config: Config, program: Training, data: Any, state: TrainState, loss_of: Callable[..., float]
) -> dict[int, float]:
    rows, total = np.arange(config.data.batch_size), config.optim.steps
    batches = train_batches(data, replace(config, seed=1), rows)
    losses = {}
    for step, batch in enumerate(batches, 1):
        arrays = global_batch(program.tokens.sharding, (batch.tokens, None), len(rows))
        state, metrics = program.train_step(state, *arrays)
        jax.block_until_ready(metrics)
        if step in (10, total // 4, total):
            losses[step] = loss_of(program, state.params)
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--step", type=int, required=True)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--peak_lr", type=float, default=3e-3)
    flags = parser.parse_args()
    start_devices()
    config, _ = read_run(flags.run)
    config = replace(config, eval=replace(config.eval, batches=BATCHES))
    data = open_data(config.data, flags.run / "data", config.model.vocab_size)
    mesh = make_mesh((1, jax.device_count(), 1))
    rows = np.arange(config.data.batch_size)

    def loss_of(program: Training, params: Any) -> float:
        batches = held_out_batches(data, config, rows)
        return validation_metrics(program.model, params, batches, len(rows), 1.0)["validation/loss"]

    with jax.set_mesh(mesh):
        shallow = build_training(config, mesh)
        old = restore(flags.run / "checkpoints", flags.step, shallow.state)
        before = loss_of(shallow, old.params)
        print(f"{config.model.n_layers} layers: {before:.4f}")
        for name, (sources, factors) in ways(config.model.n_layers, flags.layers).items():
            deep = grown_config(config, sources)
            optim = {"steps": flags.steps, "warmup_steps": 20, "peak_lr": flags.peak_lr}
            deep = replace(deep, optim=replace(deep.optim, **optim))
            program = build_training(deep, mesh)
            params = grow(old.params, sources, factors)
            fresh = program.init(jax.random.key(0))
            after = loss_of(program, like(params, program.state.params))
            print(f"{name}: {after:.4f} right after, {after - before:+.4f}")
            moments = repeated_moments(old, fresh, sources)
            for kind in ("fresh", "repeated"):
                state = program.init(jax.random.key(0))
                state = state._replace(params=like(params, program.state.params))
                if kind == "repeated":
                    state = state._replace(opt_state=moments)
                losses = train_on(deep, program, data, state, loss_of)
                shown = ", ".join(f"{loss:.4f} at {step}" for step, loss in losses.items())
                print(f"    moments {kind}: {shown}", flush=True)


if __name__ == "__main__":
    main()
