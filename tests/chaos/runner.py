"""`python -m tests.chaos.runner FLAGS...`: training with planted faults, in real processes.

`CHAOS` is a JSON list of faults: {"at": EVENT, "do": WHAT, "process": NUMBER or null, "step": N}.
They fire inside this process, at the event, so no test depends on a clock. `CHAOS_OFF` lists
protections to switch off, to show that they are needed. Each step takes `CHAOS_PACE` seconds more.
To be "slow" is to take "seconds" once, or 12, twice the patience. A "drag" takes "seconds" at each
such event, from "step" on.
"""

import json
import os
import signal
import sys
import time

import numpy as np

from gpt_pjit.commandline import run_command

FAULTS = json.loads(os.environ.get("CHAOS", "[]"))
OFF = [name for name in os.environ.get("CHAOS_OFF", "").split(",") if name]


def fire(event, step=None):
    """Whatever is planted for this event happens now, once."""
    import jax

    for fault in list(FAULTS):
        here = fault.get("process") in (None, jax.process_index())
        if fault["do"] == "drag":
            if here and fault["at"] == event and step >= fault["step"]:
                time.sleep(fault["seconds"])
        elif fault["at"] == event and fault.get("step") in (None, step) and here:
            FAULTS.remove(fault)
            print(f"chaos: {fault['do']} at {event} {step or ''}", file=sys.stderr, flush=True)
            if fault["do"] in ("sleep", "slow"):
                time.sleep(3600 if fault["do"] == "sleep" else fault.get("seconds", 12))
            elif fault["do"] != "report":
                for _ in range(fault.get("times", 1)):
                    os.kill(os.getpid(), signal.Signals[fault["do"]])


def state_changes(step, state):
    """Faults that change the state on one device of one process."""
    import jax

    for fault in list(FAULTS):
        if (fault["at"], fault.get("step")) != ("state", step):
            continue
        FAULTS.remove(fault)
        leaf = state.params["blocks"]["mlp"]["up"]["kernel"]
        parts = [shard.data for shard in leaf.addressable_shards]
        if jax.process_index() == fault["process"]:
            changed = np.array(parts[0])
            if fault["do"] == "nan":
                changed.flat[0] = np.nan
            else:  # one bit of the mantissa
                changed.view(np.uint32).flat[0] ^= 1 << 12
            parts[0] = jax.device_put(changed, parts[0].device)
        state.params["blocks"]["mlp"]["up"]["kernel"] = jax.make_array_from_single_device_arrays(
            leaf.shape, leaf.sharding, parts
        )
    return state


def plant():
    import dataclasses

    import jax
    import jax.numpy as jnp
    from jax._src import compiler

    from gpt_pjit.core import train
    from gpt_pjit.core.checkpoints import checkpointer, reading
    from gpt_pjit.core.model import Model
    from gpt_pjit.core.runtime import metrics, watch
    from gpt_pjit.core.training import step as training_step

    build, save, validate = train.build_training, train.Checkpointer.save, train.validation_metrics
    batches, write = train.train_batches, metrics.MetricsWriter.write
    open_data, compile_one = train._open_data, compiler.backend_compile_and_load
    commit = "orbax.checkpoint._src.serialization.ocdbt_utils.merge_ocdbt_per_process_files"

    def build_training(config, mesh):
        training = build(config, mesh)

        done = None

        def train_step(state, *arrays):
            nonlocal done
            done = int(jax.device_get(state.step)) if done is None else done
            number = done = done + 1
            fire("train", number)
            time.sleep(float(os.environ.get("CHAOS_PACE", 0)))
            return training.train_step(state_changes(number, state), *arrays)

        return dataclasses.replace(training, train_step=train_step)

    def batches_with_faults(data, config, rows, start, walk):
        for number, batch in enumerate(batches(data, config, rows, start, walk), start + 1):
            fire("batch", number)
            yield batch

    def write_with_faults(self, step, found):
        write(self, step, found)
        fire("write", step)

    def compile_with_faults(*args, **kwargs):
        if "train_step" in str(args[1].operation.attributes["sym_name"]):
            fire("compile")
        return compile_one(*args, **kwargs)

    def save_with_faults(self, number, state):
        save(self, number, state)
        fire("save", number)

    def validate_with_faults(model, params, sets, *rest):
        ((name, batches),) = sets.items()

        def counted():
            for number, batch in enumerate(batches):
                fire({0: "first batch", 1: "evaluate"}.get(number))
                yield batch

        return validate(model, params, {name: counted()}, *rest)

    def open_data_with_faults(config, workdir, prepare):
        def prepare_with_faults(*args):
            fire("data")
            return prepare(*args)

        return open_data(config, workdir, prepare_with_faults)

    train.build_training = build_training
    compiler.backend_compile_and_load = compile_with_faults
    train.Checkpointer.save = save_with_faults
    train.validation_metrics = validate_with_faults
    train._open_data = open_data_with_faults
    train.train_batches = batches_with_faults
    metrics.MetricsWriter.write = write_with_faults

    module, _, name = commit.rpartition(".")
    committing = getattr(sys.modules[module], name)

    async def commit_with_faults(*args, **kwargs):
        fire("commit")
        return await committing(*args, **kwargs)

    setattr(sys.modules[module], name, commit_with_faults)

    if (token := os.environ.get("CHAOS_NAN_TOKEN")) is not None:
        losses = Model.losses

        def losses_with_nan(model, weights, tokens, targets, *rest):
            found = jnp.any(targets == int(token), axis=-1, keepdims=True)
            nll, lse = losses(model, weights, tokens, targets, *rest)
            return nll * jnp.where(found, jnp.nan, 1), lse  # the gradient too

        Model.losses = losses_with_nan

    def nothing(*_, **__):
        return None

    if limit := os.environ.get("CHAOS_SLOW_AFTER"):
        watch.SLOW_AFTER = float(limit)
    if "fingerprints" in OFF:
        reading._check_same = nothing
    if "soundness" in OFF:
        checkpointer._check_sound = nothing
    if "skipping" in OFF:
        training_step.jnp = _WithoutIsfinite(jnp)
    if "divergence" in OFF:
        metrics.MAX_SKIPPED = 10**9
    if "lock" in OFF:
        import contextlib

        train.only_trainer = lambda _: contextlib.nullcontext()
    if "beats" in OFF:
        watch._Beats.beat = nothing
    if "signals" in OFF:
        watch.Watch._signalled = nothing


class _WithoutIsfinite:
    """jax.numpy, in which everything is finite."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        if name == "isfinite":
            return lambda x: self._module.ones_like(x, bool)
        return getattr(self._module, name)


def main():
    import orbax.checkpoint  # noqa: F401 - its modules are patched

    plant()
    run_command("gpt_pjit.main", prog="python -m gpt_pjit.main")


if __name__ == "__main__":
    main()
