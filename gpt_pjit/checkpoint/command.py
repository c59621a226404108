"""List a run's checkpoints, verify or inspect them, average them, or grow a deeper model from one.

gpt_pjit checkpoint list DIR
gpt_pjit checkpoint verify DIR
gpt_pjit checkpoint inspect DIR
gpt_pjit checkpoint average DIR [--last=4] [--fraction=0.2] [--steps=700,800] [--out=NEW]
gpt_pjit checkpoint grow DIR --layers=N [--out=NEW]

DIR is a workdir; for `verify`, `inspect` and `grow` it may be one step, WORKDIR/checkpoints/STEP.
`verify` reads every array and exits with 77 if one is not what was saved. `average` and `grow` make
a workdir, by default DIR/averaged and DIR/grown, and report validation loss before and after,
unless --noloss is given. With as many layers as the model has, `grow` is a new run from the same
weights. All take --json.
"""

import argparse
import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from gpt_pjit.checkpoint.combine import (
    grown_config,
    grown_params,
    layer_sources,
    mean_params,
    steps_to_average,
)
from gpt_pjit.checkpoint_arrays import (
    check_new,
    derived_workdir,
    origins,
    read_arrays,
    saved_shapes,
    verify,
)
from gpt_pjit.commandline import Answer, Parser, any_path, positive
from gpt_pjit.config import Config
from gpt_pjit.core.checkpoints import has_fingerprints, missing_parts, saved_steps, write_state
from gpt_pjit.core.console import Progress
from gpt_pjit.core.errors import EXIT_DONE, EXIT_INTEGRITY, ConfigError, IntegrityError
from gpt_pjit.core.files import as_path, files_below
from gpt_pjit.core.model import param_shapes
from gpt_pjit.core.runtime import check_same_data, has_begun, read_run
from gpt_pjit.core.sharding import paths_and_leaves
from gpt_pjit.core.tokens import TrainingData, open_data
from gpt_pjit.core.training import TrainState, make_optimizer
from gpt_pjit.pages import Table, terminal
from gpt_pjit.trained import (
    find_checkpoint,
    held_out_metrics,
    run_tokenizer,
    split_step,
    start_devices,
)

Run = dict[str, Any]  # a run.json


def list_command(flags: argparse.Namespace) -> Answer:
    path = _workdir(flags)
    _, run = read_run(path)
    listed = list_checkpoints(path / "checkpoints")
    rows = [
        (f"{c['step']:,}", c["date"], f"{c['size'] / 1e6:,.1f}", "yes" if c["complete"] else "NO")
        for c in listed
    ]
    table = Table(f"checkpoints of {path}", (">step", ">date", ">MB", ">complete"), rows)
    record = {"source": run.get("source"), "checkpoints": listed}
    made = [f"weights: {origin}" for origin in origins(run.get("source"))]
    return Answer(EXIT_DONE, record, [*terminal([table]), *made])


def list_checkpoints(directory: Path) -> list[dict[str, Any]]:
    """Step, date, size and completeness of every checkpoint, unfinished ones included, in order."""
    found = []
    whole = [step for step in saved_steps(directory) if not missing_parts(directory, step)]
    for folder in directory.iterdir() if directory.is_dir() else ():
        step, _, unfinished = folder.name.partition(".")  # Orbax writes in STEP.orbax-...-tmp-N
        if not step.isdecimal() or not folder.is_dir():
            continue
        try:
            files = files_below(folder)
            newest = max(time for _, time in files) if files else folder.stat().st_mtime
        except FileNotFoundError:  # a run has just pruned or renamed it
            continue
        checkpoint = {
            "step": int(step),
            "date": datetime.fromtimestamp(newest, UTC).isoformat(timespec="seconds"),
            "size": sum(size for size, _ in files),
            "complete": not unfinished and int(step) in whole,
        }
        found.append(checkpoint)
    return sorted(found, key=lambda checkpoint: checkpoint["step"])


def verify_command(flags: argparse.Namespace) -> Answer:
    _start()
    workdir, wanted = split_step(flags.folder)
    directory = workdir / "checkpoints"
    steps = saved_steps(directory) if wanted is None else [wanted]
    if not steps:
        raise ConfigError([f"{workdir} holds no checkpoint"], "checkpoint")
    found, record = [], []
    with Progress("verifying", len(steps)) as progress:
        for done, step in enumerate(steps, 1):
            problem = ""
            try:
                arrays = verify(directory, step, sorted(saved_shapes(directory, step)))
                verdict = f"whole: {arrays} arrays"
                if not has_fingerprints(directory, step):
                    verdict += ", readable; saved before fingerprints existed"
            except IntegrityError as error:
                problem = verdict = str(error.problems[0])
            found.append((f"{step:,}", verdict))
            record.append({"step": step, "whole": not problem, "problem": problem or None})
            progress.update(done)
    table = Table(f"checkpoints of {workdir}", (">step", "verdict"), found)
    whole = all(one["whole"] for one in record)
    return Answer(EXIT_DONE if whole else EXIT_INTEGRITY, record, terminal([table]))


def inspect_command(flags: argparse.Namespace) -> Answer:
    _start()
    workdir, step = find_checkpoint(flags.folder)
    shapes = paths_and_leaves(saved_shapes(workdir / "checkpoints", step))
    record = [
        {
            "path": path,
            "shape": list(leaf.shape),
            "dtype": str(leaf.dtype),
            "bytes": leaf.size * leaf.dtype.itemsize,
        }
        for path, leaf in shapes
    ]
    rows = [(r["path"], str(tuple(r["shape"])), r["dtype"], f"{r['bytes']:,}") for r in record]
    table = Table(f"step {step} of {workdir}", ("path", "shape", "dtype", ">bytes"), rows)
    return Answer(EXIT_DONE, {"step": step, "arrays": record}, terminal([table]))


def average_command(flags: argparse.Namespace) -> Answer:
    _start()
    path = _workdir(flags)
    out = flags.out or path / "averaged"
    check_new(out)
    config, run = read_run(path)
    steps = _steps_of(path, run, flags)
    directory = path / "checkpoints"
    shapes = param_shapes(config.model, config.data.sequence_length)
    opt_state = jax.eval_shape(make_optimizer(config, shapes).init, shapes)
    source = _source("average", path, run, steps=steps)
    with derived_workdir(out, config, run_tokenizer(path, run), source, run) as draft:
        params = mean_params(directory, steps, shapes)
        # The step and moments of the newest: the run can continue from here.
        rest = {"step": jax.ShapeDtypeStruct((), np.int32), "opt_state": opt_state}
        rest = read_arrays(directory, steps[-1], rest)
        write_state(draft / "checkpoints", steps[-1], TrainState(params=params, **rest))
    words = f"the mean of steps {', '.join(map(str, steps))} of {path}"
    return _made(out, words, source, directory / str(steps[-1]), flags)


def grow_command(flags: argparse.Namespace) -> Answer:
    _start()
    workdir, step = find_checkpoint(flags.folder)
    out = flags.out or workdir / "grown"
    check_new(out)
    config, run = read_run(workdir)
    sources = layer_sources(config.model.n_layers, flags.layers)
    shapes = param_shapes(config.model, config.data.sequence_length)
    source = _source("grow", workdir, run, step=step, layers=sources)
    new_config = grown_config(config, sources)
    with derived_workdir(out, new_config, run_tokenizer(workdir, run), source) as draft:
        params = grown_params(workdir / "checkpoints", step, shapes, sources)
        write_state(draft / "checkpoints", 0, {"step": np.int32(0), "params": params})
    words = f"{len(sources)} layers, from layers {sources} of step {step}"
    return _made(out, words, source, workdir / "checkpoints" / str(step), flags)


def _start() -> None:
    logging.set_verbosity(logging.ERROR)  # Orbax logs every file it touches
    start_devices()


def _source(kind: str, workdir: Path, run: Run, **details: Any) -> dict[str, Any]:
    """What new weights are made of, and under `source` what those were made of in turn."""
    source = {"kind": kind, "from": str(workdir.resolve()), **details}
    return source | ({"source": run["source"]} if "source" in run else {})


def _made(out: Path, words: str, source: Run, before: Path, flags: argparse.Namespace) -> Answer:
    """The answer about the new workdir `out`, whose loss is compared with that of `before`."""
    losses, measured = _losses(before, out) if flags.loss else (None, "loss not measured")
    record = {"workdir": str(out), **source, "validation_loss": losses}
    return Answer(EXIT_DONE, record, [f"{out}: {words}", f"validation {measured}"])


def _losses(before: Path, after: Path) -> tuple[dict[str, float] | None, str]:
    """Validation losses on the own data of the run with the step `before`, or why not."""
    workdir, step = split_step(before)
    config, run = read_run(workdir)
    if not has_begun(run):
        return None, "loss not measured: nothing has been trained here yet"
    try:
        data = _own_data(workdir, config, run)
        old, new = (held_out_metrics(at, data)["validation/loss"] for at in (before, after))
    except ConfigError as error:
        return None, f"loss not measured: {error}"
    except KeyboardInterrupt:  # the new workdir is complete without it
        return None, "loss not measured: stopped"
    return {"before": old, "after": new}, f"loss {old:.4f} at step {step}, {new:.4f} now"


def _own_data(workdir: Path, config: Config, run: Run) -> TrainingData:
    """What the run trained on; tokenised text may be in the workdir its weights came from."""
    wanted, folder, source = config.data, workdir, run.get("source")
    while not (folder / "data").exists() and source:
        folder, source = as_path(source["from"]), source.get("source")
    if wanted.text:
        wanted = dataclasses.replace(wanted, text="", path=str(folder / "data"))
    data = open_data(wanted, folder, config.model.vocab_size)
    check_same_data(workdir, data.identity())
    return data


def _workdir(flags: argparse.Namespace) -> Path:
    workdir, step = split_step(flags.folder)
    if step is not None:
        problem = f"{flags.folder} is one step, but {flags.command} takes a run; give {workdir}"
        raise ConfigError([problem], flags.command)
    return workdir


def _steps_of(path: Path, run: Run, flags: argparse.Namespace) -> list[int]:
    find_checkpoint(path)  # raises where there is none, and says why
    if not has_begun(run):
        problem = f"{path} has a single checkpoint: nothing has been trained there yet"
        raise ConfigError([problem], "average")
    directory = path / "checkpoints"
    whole = [step for step in saved_steps(directory) if not missing_parts(directory, step)]
    if flags.steps is None:
        return steps_to_average(whole, flags.last, flags.fraction)
    if wrong := sorted(set(flags.steps) - set(whole)):
        raise ConfigError([f"{path} has no complete steps {wrong}; it has {whole}"], "--steps")
    return sorted(set(flags.steps))


def define(parser: Parser) -> None:
    add = parser.add_command
    listed = add("list", list_command, "the checkpoints of a run")
    verified = add("verify", verify_command, "check every array against what was saved")
    inspected = add("inspect", inspect_command, "the arrays of a checkpoint")
    average = add("average", average_command, "the mean of late checkpoints")
    which = average.add_mutually_exclusive_group()
    which.add_argument("--last", type=positive, default=4, help="how many steps; default 4")
    which.add_argument("--steps", type=steps, help="average these, for example 700,800")
    fraction = "choose from this last share of the steps; default 0.2"
    average.add_argument("--fraction", type=float, default=0.2, help=fraction)
    grow = add("grow", grow_command, "a deeper model that computes the same")
    grow.add_argument("--layers", type=int, required=True, help="number of layers")
    for command in (listed, verified, inspected, average, grow):
        one_step = command in (verified, inspected, grow)
        folder = "a workdir" + (", or WORKDIR/checkpoints/STEP" if one_step else "")
        command.add_argument("folder", type=any_path, metavar="DIR", help=folder)
        command.add_json()
    for command, name in ((average, "averaged"), (grow, "grown")):
        place = f"the workdir to make; default WORKDIR/{name}"
        command.add_argument("--out", type=any_path, help=place)
        noloss = "do not measure the loss"
        command.add_argument("--noloss", dest="loss", action="store_false", help=noloss)


def steps(text: str) -> list[int]:
    return [int(step) for step in text.split(",")]
