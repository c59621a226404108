"""The run: from a config to a trained model in a workdir. The loop, and only the loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax

from gpt_pjit.config import Config
from gpt_pjit.core.checkpointer import Checkpointer, restore_params
from gpt_pjit.core.console import say
from gpt_pjit.core.errors import EXIT_DONE, EXIT_INTERRUPTED
from gpt_pjit.core.model import count_params
from gpt_pjit.core.runtime import (
    Interrupt,
    StepLog,
    global_batch,
    local_rows,
    open_workdir,
    record_start,
    wait_for_all,
)
from gpt_pjit.core.sharding import make_mesh, mesh_shape
from gpt_pjit.core.tokens import TrainingData, held_out_batches, open_data, train_batches
from gpt_pjit.core.training import Program, TrainState, build, validation_metrics


def train(
    config: Config,
    workdir: Path,
    prepare: Callable[[Config, Path], object],
    sample: Callable[..., str],
) -> int:
    """Trains, or continues where `workdir` left off; returns the exit code.

    What a run borrows from tools is passed in, so that the core imports none of them:
    `prepare(config, folder)` tokenises `data.text` into a set in `folder`, where it is not there
    yet, and `sample(program, params, config, tokenizer)` is the text that closes a run.
    """
    mesh = config.mesh
    shape = mesh_shape(mesh.replica, mesh.data, mesh.tensor, jax.device_count())
    program = build(config, make_mesh(shape))
    open_workdir(workdir, config)
    data = _open_data(config, workdir, prepare)
    tokenizer = data.tokenizer()
    record_start(workdir, config, data.identity(), (tokenizer.file, tokenizer.content))
    checkpointer = Checkpointer(workdir / "checkpoints", config.checkpoint.keep)
    with jax.set_mesh(program.mesh):
        start = checkpointer.latest_step() or 0
        _describe(config, program, data, start)
        if start >= config.optim.steps:
            say(f"this run is finished: {workdir} holds all {start} steps")
            return EXIT_DONE
        if start:
            state = checkpointer.restore(start, program.state)
        else:
            state = program.init(jax.random.key(config.seed))
            if checkpointer.latest_step() == 0:  # imported or grown: parameters, and no more
                params = restore_params(workdir / "checkpoints", 0, program.state.params)
                state = state._replace(params=params)
        state, step = _loop(config, workdir, program, data, checkpointer, state, start)
        checkpointer.close()
        if len(data.splits) > 1:
            examples = step * config.data.batch_size
            say("drawn:\n" + data.proportions(examples, config.data.sequence_length))
        if step < config.optim.steps:
            say(f"stopped and saved at step {step}; the same command resumes there")
            return EXIT_INTERRUPTED
        if config.sample.tokens:
            say(sample(program, state.params, config, data.tokenizer()))
    say(f"finished: metrics, checkpoints and run.json are in {workdir}")
    return EXIT_DONE


def _loop(
    config: Config,
    workdir: Path,
    program: Program,
    data: TrainingData,
    checkpointer: Checkpointer,
    state: TrainState,
    start: int,
) -> tuple[TrainState, int]:
    """Steps from `start` to the last, or to Ctrl-C; the state and the number of steps done."""
    size, length, total = config.data.batch_size, config.data.sequence_length, config.optim.steps
    rows = local_rows(program.tokens.sharding, program.tokens.shape)
    batches = train_batches(
        data,
        seed=config.seed,
        batch_size=size,
        sequence_length=length,
        rows=rows,
        start=start,
        stop=total,
        mask_documents=config.data.mask_documents,
    )
    per_byte = data.held_out_tokens / data.held_out_bytes
    log = StepLog(config, workdir, count_params(state.params), start)
    step = start
    with Interrupt() as interrupt, jax.transfer_guard("disallow"):
        for step, batch in enumerate(log.waiting(batches), start + 1):
            arrays = global_batch(program.tokens.sharding, (batch.tokens, batch.segments), size)
            state, metrics = program.train_step(state, *arrays)
            log.push(step, metrics)
            stop = interrupt.requested
            if step % config.checkpoint.every == 0 or step == total or stop:
                with log.pause(step):
                    checkpointer.save(step, state)
            if step % config.eval.every == 0 or step == total:
                with log.pause(step):
                    held_out = held_out_batches(data, config, rows)
                    log.write(step, validation_metrics(program, state.params, held_out, per_byte))
            if stop:
                break
    log.close()
    return state, step


def _open_data(
    config: Config, workdir: Path, prepare: Callable[[Config, Path], object]
) -> TrainingData:
    """Process 0 tokenises the text if need be, while the others wait."""
    folder = workdir / "data"
    if config.data.text and jax.process_index() == 0:
        prepare(config, folder)
    wait_for_all("data prepared")
    return open_data(config.data, folder, config.model.vocab_size)


def _describe(config: Config, program: Program, data: TrainingData, start: int) -> None:
    train_tokens = sum(split.tokens for split in data.splits)
    axes = " x ".join(f"{axis} {size}" for axis, size in program.mesh.shape.items() if size > 1)
    say(
        f"model: {count_params(program.state.params) / 1e6:,.1f} M parameters\n"
        f"devices: {jax.device_count()} {jax.devices()[0].device_kind}, "
        f"mesh {axes or 'of one'}, layout {config.partition.layout}\n"
        f"data: {train_tokens:,} training and {data.held_out_tokens:,} validation tokens\n"
        f"steps: {start:,} of {config.optim.steps:,} done, each of "
        f"{config.data.batch_size * config.data.sequence_length:,} tokens"
    )
