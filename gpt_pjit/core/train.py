"""The run: from a config to a trained model in a workdir. The loop, and only the loop."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
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
    Profiler,
    StepLog,
    StopRequested,
    Timeline,
    Watch,
    all_or_none,
    check_agreement,
    check_none_saved,
    check_same_data,
    code_facts,
    connect,
    entries_of,
    from_process_0,
    global_batch,
    has_begun,
    local_rows,
    note,
    only_trainer,
    open_workdir,
    planned_step,
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
    depth_metrics,
    validation_metrics,
    warmup_steps,
)


@dataclass(frozen=True)
class Tools:
    """What a run borrows from tools: the core imports none.

    `prepare(config, folder)` tokenises `data.text` into a set in `folder`, unless it exists.
    `sample(model, params, config, tokenizer)` returns each prompt and the text after it.
    `track(config, workdir)` makes the trackers that get the metrics too.
    `tasks(model, tokenizer, config, ticking)` prepares `eval.tasks`, and returns what scores
    parameters on them: their metrics, on process 0. Its work is given to `ticking` in pieces.
    """

    prepare: Callable[[Config, Path], object]
    sample: Callable[[Model, Any, Config, Tokenizer], list[tuple[str, str]]]
    track: Callable[[Config, Path], Sequence[Any]] = lambda config, workdir: ()
    tasks: Callable[..., Callable[[Any], dict[str, float]]] = lambda *_: lambda params: {}


def train(
    config: Config,
    workdir: Path,
    tools: Tools,
    origin: Origin | None = None,
    allowed: Collection[str] = (),
    plans: Collection[Path] = (),
    profile: range = range(0),
) -> int:
    """Trains, or continues where `workdir` left off; returns the exit code.

    A new run may begin from a step of another, `origin`. One that resumes may differ from what it
    was in the fields that are `allowed`. A step is compared with its plan, if the record of it is
    among `plans`. The steps of `profile` are traced.
    """
    timeline, sizes = Timeline(), config.mesh
    shape = mesh_shape(sizes.replica, sizes.data, sizes.tensor, jax.device_count())
    training = build_training(config, make_mesh(shape, pod_devices()))
    with Watch(config.log.patience) as watch:
        check_agreement({"--from": str(origin)})
        origin = open_workdir(workdir, config, origin, allowed)
        with only_trainer(workdir):
            data = _open_data(config, workdir, tools.prepare)
            check_agreement(_facts(config, data))
            with all_or_none():
                check_same_data(workdir, data.identity(), origin)
            connect(training.mesh)
            with jax.set_mesh(training.mesh):
                run = _Run(config, workdir, training, data, watch, tools)
                return run.to_the_end(origin, timeline, plans, profile)


class _Run:
    """A run that has its workdir and its data."""

    log: StepLog
    tokenizer: Tokenizer
    score: Callable[[Any], dict[str, float]]

    def __init__(
        self,
        config: Config,
        workdir: Path,
        training: Training,
        data: TrainingData,
        watch: Watch,
        tools: Tools,
    ):
        self.config, self.workdir, self.training, self.data = config, workdir, training, data
        self.watch, self.tools = watch, tools
        self.total = config.optim.steps
        directory, keep = workdir / "checkpoints", config.checkpoint.keep
        self.checkpointer = Checkpointer(directory, keep, self.note_saved)
        tokens = training.tokens
        self.rows = local_rows(tokens.sharding, tokens.shape)

    def to_the_end(
        self,
        origin: Origin | None,
        timeline: Timeline,
        plans: Collection[Path],
        profile: range,
    ) -> int:
        config, workdir, training, total = self.config, self.workdir, self.training, self.total
        looks = jax.process_index() == 0  # the others may not yet see what it sees
        saved = saved_steps(workdir / "checkpoints") if looks else ()
        finished = read_run(workdir)[1].get("finished") if looks else None
        if from_process_0(finished == total in saved):
            say(f"this run is finished: {workdir} holds all {total} steps")
            return EXIT_DONE
        timeline.end("prepare")
        with self.watch.slow():
            state, start = _first_state(config, workdir, training, self.checkpointer, origin)
        timeline.end("restore")
        self.tokenizer = self.data.tokenizer()
        if config.eval.tasks:
            ticking = partial(self.watch.ticking, slow=True)
            with all_or_none():
                self.score = self.tools.tasks(training.model, self.tokenizer, config, ticking)
        walk = _record(config, workdir, self.data, self.tokenizer, start, origin)
        _describe(config, training, self.data, start)
        n_params = count_params(training.state.params)
        planned = planned_step(plans, config, training.mesh.shape, n_params)
        trackers = partial(self.tools.track, config, workdir)
        self.log = StepLog(
            config, workdir, n_params, start, timeline, self.watch, planned, trackers
        )
        with self.log as log:
            profiler = Profiler(workdir, profile, log.pause)
            state, step, whole = self.steps(state, start, walk, profiler)
            log.progress.close()
            with log.pause("save", step):
                self.checkpointer.close()
            self.watch.saved()
            if len(self.data.splits) > 1:
                say("examples by set:\n" + self.data.proportions(walk, step))
            if step == total and whole and config.sample.tokens:
                for prompt, text in self.write_samples(step, state):
                    say(f"sample:\n{prompt}{text}\n")
        if step < total or not whole:
            say(f"stopped and saved at step {step}; the same command resumes there")
            return self.watch.code
        note(workdir, finished=step)
        say(f"finished: metrics, checkpoints and run.json are in {workdir}")
        return EXIT_DONE

    def steps(
        self, state: TrainState, start: int, walk: Walk, profiler: Profiler
    ) -> tuple[TrainState, int, bool]:
        """The loop: from step `start` to the end or to a signal; returns the state, the steps done,
        and whether all that is due after the last of them is done too.
        """
        config, log, training, watch = self.config, self.log, self.training, self.watch
        sharding, size = training.tokens.sharding, config.data.batch_size
        step, whole = start, True
        with jax.transfer_guard("disallow"):
            try:
                if start:  # a kill may have come after that step was saved
                    self.look_at(start, state, log.written)
                batches = train_batches(self.data, config, self.rows, start, walk)
                for step, batch in enumerate(log.waiting(batches), start + 1):
                    profiler.before(step, watch.profile_asked())
                    with watch.on_devices():
                        with log.pace.part("dispatch"):
                            found = (batch.tokens, batch.segments)
                            arrays = global_batch(sharding, found, size)
                        if _is_due(step, config.log.depth_every):
                            self.look_into(step, state, arrays)
                        with log.pace.part("dispatch"):
                            state, metrics = training.train_step(state, *arrays)
                        log.push(step, metrics)
                    self.checkpointer.poll()
                    if _is_due(step, config.checkpoint.every) or step == self.total:
                        self.save(step, state)
                    self.look_at(step, state)
                    if watch.tick():
                        break
            except StopRequested:  # in a validation or a task: the next start makes up for it
                whole = False
            profiler.finish(step)
            if step != self.checkpointer.last:
                self.save(step, state)
        return state, step, whole

    def look_at(self, step: int, state: TrainState, written: Collection[str] = ()) -> None:
        """Measures and writes what is due after a step, but for the metrics that are `written`."""
        c, last = self.config, step == self.total
        validates = self.data.held_out_tokens and (last or _is_due(step, c.eval.every))
        if validates and "validation" not in written:
            self.validate(step, state)
        evaluates = c.eval.tasks and (last or _is_due(step, c.eval.tasks_every))
        if evaluates and "evaluation" not in written:
            self.evaluate(step, state)
        if c.sample.tokens and _is_due(step, c.sample.every) and not last:
            self.write_samples(step, state)

    def save(self, step: int, state: TrainState) -> None:
        with self.log.pause("save", step), self.watch.slow():
            self.checkpointer.save(step, state)

    def note_saved(self, step: int) -> None:
        note(self.workdir, saved=step)
        self.log.cells.saved(step)

    def validate(self, step: int, state: TrainState) -> None:
        data, watch = self.data, self.watch
        batches = held_out_batches(data, self.config, self.rows)
        ticking = {name: watch.ticking(of_set) for name, of_set in batches.items()}
        size, per_byte = self.config.data.batch_size, data.held_out_tokens / data.held_out_bytes
        with self.log.pause("validation", step), watch.slow():
            model = self.training.model
            found = validation_metrics(model, state.params, ticking, size, per_byte)
            self.log.write("validation", step, found)

    def evaluate(self, step: int, state: TrainState) -> None:
        guard = jax.transfer_guard("allow")
        with self.log.pause("evaluation", step), self.watch.slow(), guard:
            self.log.write("evaluation", step, self.score(state.params))

    def look_into(self, step: int, state: TrainState, arrays: list[Any]) -> None:
        with self.log.pause("depth", step - 1), self.watch.slow():
            found = self.training.depth(state, *arrays)
            self.log.writer.write(step, depth_metrics(found))

    def write_samples(self, step: int, state: TrainState) -> list[tuple[str, str]]:
        guard = jax.transfer_guard("allow")
        with self.log.pause("sample", step), self.watch.slow(), guard:
            model = self.training.model
            texts = self.tools.sample(model, state.params, self.config, self.tokenizer)
            self.log.writer.write_samples(step, texts)
        return texts


def _is_due(step: int, every: int) -> bool:
    """Whether something happens after this step; never if `every` is 0."""
    return every > 0 and step % every == 0


def _open_data(config: Config, workdir: Path, prepare: Callable[..., object]) -> TrainingData:
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
    config: Config,
    workdir: Path,
    data: TrainingData,
    tokenizer: Tokenizer,
    start: int,
    origin: Origin | None,
) -> Walk:
    """Records this start in `run.json`; returns how the run reads its data from here on."""
    sets, entries = data.fingerprints(), {}
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
