"""The run: from a config to a trained model in a workdir. The loop, and only the loop."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import jax

from gpt_pjit.config import Config, differences, flatten
from gpt_pjit.core.checkpoints import Checkpointer, newest_or_wanted, restore, saved_steps
from gpt_pjit.core.console import say
from gpt_pjit.core.errors import EXIT_DONE, ConfigError, Problem
from gpt_pjit.core.model import Model, count_params
from gpt_pjit.core.runtime import (
    Origin,
    StepLog,
    StopRequested,
    Watch,
    all_or_none,
    check_agreement,
    check_none_saved,
    check_same_data,
    code_facts,
    entries_of,
    finished_steps,
    from_process_0,
    global_batch,
    has_begun,
    local_rows,
    note_finished,
    note_saved,
    only_trainer,
    open_workdir,
    pod_devices,
    read_run,
    record_start,
)
from gpt_pjit.core.sharding import make_mesh, mesh_shape
from gpt_pjit.core.tokens import (
    Tokenizer,
    TrainingData,
    Walk,
    first_walk,
    held_out_batches,
    open_data,
    train_batches,
    walk_to_json,
    walks_of,
    walks_on,
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


def train(
    config: Config,
    workdir: Path,
    prepare: Prepare,
    sample: Sample,
    origin: Origin | None = None,
    allowed: Collection[str] = (),
) -> int:
    """Trains, or continues where `workdir` left off; returns the exit code.

    A new run may begin from a step of another, `origin`. One that resumes may differ from what it
    was in the fields that are `allowed`.

    The core imports no tool, so two of their functions are passed in: `prepare(config, folder)`
    tokenises `data.text` into a set in `folder`, unless it exists, and `sample(model, params,
    config, tokenizer)` returns the text printed at the end.
    """
    sizes = config.mesh
    shape = mesh_shape(sizes.replica, sizes.data, sizes.tensor, jax.device_count())
    training = build_training(config, make_mesh(shape, pod_devices()))
    with Watch(config.log.patience) as watch:
        check_agreement({"--from": str(origin)})
        origin = open_workdir(workdir, config, origin, allowed)
        with only_trainer(workdir):
            data = _open_data(config, workdir, prepare)
            check_agreement(_facts(config, data))
            with all_or_none():
                check_same_data(workdir, data.identity(), origin)
            with jax.set_mesh(training.mesh):
                return _run(config, workdir, training, data, watch, sample, origin)


def _run(
    config: Config,
    workdir: Path,
    training: Training,
    data: TrainingData,
    watch: Watch,
    sample: Sample,
    origin: Origin | None,
) -> int:
    total = config.optim.steps
    checkpoints = workdir / "checkpoints"
    checkpointer = Checkpointer(checkpoints, config.checkpoint.keep, partial(note_saved, workdir))
    looks = jax.process_index() == 0  # the others may not yet see what it sees
    if from_process_0(looks and finished_steps(workdir) == total in saved_steps(checkpoints)):
        say(f"this run is finished: {workdir} holds all {total} steps")
        return EXIT_DONE
    with watch.slow():
        state, start = _first_state(config, workdir, training, checkpointer, origin)
    walk = _record(config, workdir, data, start, origin)
    _describe(config, training, data, start)
    state, step = _loop(config, workdir, training, data, checkpointer, watch, state, start, walk)
    checkpointer.close()
    watch.saved()
    if len(data.splits) > 1:
        say("examples by set:\n" + data.proportions(walk, step))
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
    config: Config,
    workdir: Path,
    training: Training,
    checkpointer: Checkpointer,
    origin: Origin | None,
) -> tuple[TrainState, int]:
    """The state of the newest whole step, and that step; or of the step of `origin`; or a fresh
    state and 0.
    """
    found = checkpointer.restore_newest(training.state)
    if found is None:
        check_none_saved(workdir)
        if origin:
            directory = origin.workdir / "checkpoints"
            read = partial(restore, directory, target=training.state)
            found = newest_or_wanted(directory, origin.step, read)
    step, total = found[0] if found else 0, config.optim.steps
    if step > total or (checkpointer.last is None and step == total):
        remedy = "set it higher; it counts from step 0"
        constraint = f"the run is at step {step:,} already"
        raise ConfigError([Problem("optim.steps", total, constraint, remedy)])
    if found and step:
        return found[1], step
    state = training.init(jax.random.key(config.seed))
    return (state._replace(params=found[1].params) if found else state), 0


def _record(
    config: Config, workdir: Path, data: TrainingData, start: int, origin: Origin | None
) -> Walk:
    """Records this start in `run.json`; returns how the run reads its data from here on."""
    sets, tokenizer, entries = data.fingerprints(), data.tokenizer(), {}
    with all_or_none():
        before, record = read_run(workdir)
        if origin and not has_begun(record):
            before, record = read_run(origin.workdir)
            entries = entries_of(origin, start, differences(before, config), record)
    walks = [first_walk(config, sets)]
    if has_begun(record):
        walks = walks_on(walks_of(before, record), start, config, sets)
    told = from_process_0([walk_to_json(walk) for walk in walks])
    walk = walks_of(config, {"walks": told})[-1]
    if walk.step == start > 0:
        of_sets = zip(data.splits, walk.sets, strict=True)
        say("\n".join(f"data: example {r.taken:,} of {s.path} is next" for s, r in of_sets))
    content = (tokenizer.file, tokenizer.content)
    entries |= {"walks": told}
    record_start(workdir, config, data.identity(), content, start, entries)
    return walk


def _loop(
    config: Config,
    workdir: Path,
    training: Training,
    data: TrainingData,
    checkpointer: Checkpointer,
    watch: Watch,
    state: TrainState,
    start: int,
    walk: Walk,
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
            batches = train_batches(data, config, rows, start, walk)
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
