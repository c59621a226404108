"""The run: from a config to a trained model in a workdir. The loop, and only the loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax

from gpt_pjit.config import Config, flatten
from gpt_pjit.core.checkpointer import Checkpointer, saved_steps
from gpt_pjit.core.console import say
from gpt_pjit.core.errors import EXIT_DONE
from gpt_pjit.core.model import Model, count_params
from gpt_pjit.core.runtime import (
    StepLog,
    StopRequested,
    Watch,
    all_or_none,
    check_agreement,
    check_none_saved,
    code_facts,
    finished_steps,
    from_process_0,
    global_batch,
    local_rows,
    note_finished,
    note_saved,
    only_trainer,
    open_workdir,
    pod_devices,
    record_start,
)
from gpt_pjit.core.sharding import make_mesh, mesh_shape
from gpt_pjit.core.tokens import (
    Tokenizer,
    TrainingData,
    held_out_batches,
    open_data,
    train_batches,
)
from gpt_pjit.core.training import (
    Training,
    TrainState,
    build_training,
    validation_metrics,
    warmup_steps,
)

Prepare = Callable[[Config, Path], object]
Sample = Callable[[Model, Any, Config, Tokenizer], str]


def train(config: Config, workdir: Path, prepare: Prepare, sample: Sample) -> int:
    """Trains, or continues where `workdir` left off; returns the exit code.

    The core imports no tool, so two of their functions are passed in: `prepare(config, folder)`
    tokenises `data.text` into a set in `folder`, unless it exists, and `sample(model, params,
    config, tokenizer)` returns the text printed at the end.
    """
    sizes = config.mesh
    shape = mesh_shape(sizes.replica, sizes.data, sizes.tensor, jax.device_count())
    training = build_training(config, make_mesh(shape, pod_devices()))
    with Watch(config.log.patience) as watch:
        open_workdir(workdir, config)
        with only_trainer(workdir):
            data = _open_data(config, workdir, prepare)
            tokenizer = data.tokenizer()
            check_agreement(_facts(config, data))
            record_start(workdir, config, data.identity(), (tokenizer.file, tokenizer.content))
            with jax.set_mesh(training.mesh):
                return _run(config, workdir, training, data, watch, sample)


def _run(
    config: Config,
    workdir: Path,
    training: Training,
    data: TrainingData,
    watch: Watch,
    sample: Sample,
) -> int:
    total = config.optim.steps
    checkpoints = workdir / "checkpoints"
    checkpointer = Checkpointer(checkpoints, config.checkpoint.keep, partial(note_saved, workdir))
    looks = jax.process_index() == 0  # the others may not yet see what it sees
    if from_process_0(looks and finished_steps(workdir) == total in saved_steps(checkpoints)):
        say(f"this run is finished: {workdir} holds all {total} steps")
        return EXIT_DONE
    with watch.slow():
        state, start = _first_state(config, workdir, training, checkpointer)
    _describe(config, training, data, start)
    state, step = _loop(config, workdir, training, data, checkpointer, watch, state, start)
    checkpointer.close()
    watch.saved()
    if len(data.splits) > 1:
        examples = step * config.data.batch_size
        say("examples by set:\n" + data.proportions(examples, config.data.sequence_length))
    if step < total:
        say(f"stopped and saved at step {step}; the same command resumes there")
        return watch.code
    if config.sample.tokens:
        say(sample(training.model, state.params, config, data.tokenizer()))
    note_finished(workdir, step)
    say(f"finished: metrics, checkpoints and run.json are in {workdir}")
    return EXIT_DONE


def _open_data(config: Config, workdir: Path, prepare: Prepare) -> TrainingData:
    """Opens the data; process 0 first tokenises the text if necessary, while the others wait."""
    folder = workdir / "data"
    with all_or_none():
        if config.data.text and jax.process_index() == 0:
            prepare(config, folder)
    with all_or_none():
        return open_data(config.data, folder, config.model.vocab_size)


def _facts(config: Config, data: TrainingData) -> dict[str, Any]:
    """What must be the same on all hosts; only the path of a set may differ."""
    sets = [{**identity, "path": None} for identity in data.identity()]
    return flatten(config) | code_facts() | {"data": sets, "data.path": None}


def _first_state(
    config: Config, workdir: Path, training: Training, checkpointer: Checkpointer
) -> tuple[TrainState, int]:
    """The state of the newest whole step, and that step, or a fresh state and 0."""
    found = checkpointer.restore_newest(training.state)
    if found is None:
        check_none_saved(workdir)
    elif found[0]:
        return found[1], found[0]
    state = training.init(jax.random.key(config.seed))
    return (state._replace(params=found[1].params) if found else state), 0


def _loop(
    config: Config,
    workdir: Path,
    training: Training,
    data: TrainingData,
    checkpointer: Checkpointer,
    watch: Watch,
    state: TrainState,
    start: int,
) -> tuple[TrainState, int]:
    """Trains from step `start` to the end or to a signal; returns the state and the steps done."""
    model, tokens, total = training.model, training.tokens, config.optim.steps
    size = config.data.batch_size
    rows = local_rows(tokens.sharding, tokens.shape)
    log = StepLog(config, workdir, count_params(state.params), start)

    def save(step: int) -> None:
        with log.pause(step), watch.slow():
            checkpointer.save(step, state)

    def validate(step: int) -> None:
        batches = held_out_batches(data, config, rows)
        per_byte = data.held_out_tokens / data.held_out_bytes
        with log.pause(step), watch.slow():
            found = validation_metrics(model, state.params, watch.ticking(batches), size, per_byte)
            log.write(step, found)

    def validation_is_due(step: int) -> bool:
        due = step % config.eval.every == 0 or step == total
        return due and data.held_out_tokens > 0

    step = start
    with jax.transfer_guard("disallow"):
        try:
            if start and validation_is_due(start) and not log.validated:
                validate(start)  # a kill came after that step was saved
            batches = train_batches(data, config, rows, start)
            for step, batch in enumerate(log.waiting(batches), start + 1):
                with watch.on_devices():
                    arrays = global_batch(tokens.sharding, (batch.tokens, batch.segments), size)
                    state, metrics = training.train_step(state, *arrays)
                    log.push(step, metrics)
                checkpointer.poll()
                if step % config.checkpoint.every == 0 or step == total:
                    save(step)
                if validation_is_due(step):
                    validate(step)
                if watch.tick():
                    break
        except StopRequested:  # in a validation, which the next start makes up for
            pass
        if step != checkpointer.last:
            save(step)
    log.close()
    return state, step


def _describe(config: Config, training: Training, data: TrainingData, start: int) -> None:
    train_tokens = sum(split.tokens for split in data.splits)
    mesh = training.model.mesh
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    held_out = (
        f"{data.held_out_tokens:,} validation tokens"
        if data.held_out_tokens
        else "no validation tokens, so no validation"
    )
    optim = config.optim
    warmup = warmup_steps(optim)
    say(
        f"model: {count_params(training.state.params) / 1e6:,.1f} M parameters\n"
        f"devices: {jax.device_count()} {jax.devices()[0].device_kind}, "
        f"mesh {axes or 'of one device'}, layout {config.partition.layout}\n"
        f"data: {train_tokens:,} training and {held_out}\n"
        f"steps: {start:,} of {optim.steps:,} done, each of "
        f"{config.data.batch_size * config.data.sequence_length:,} tokens"
    )
    if warmup != optim.warmup_steps:
        say(
            f"warm-up: {warmup} steps, a tenth of the run, "
            f"since optim.warmup_steps={optim.warmup_steps} is not below optim.steps={optim.steps}"
        )
