"""Look at a run's checkpoints, average them, or grow a deeper model from one.

python -m gpt_pjit.checkpoint list DIR
python -m gpt_pjit.checkpoint average DIR [--last=4] [--fraction=0.2] [--steps=700,800] [--out=NEW]
python -m gpt_pjit.checkpoint grow DIR --layers=N [--out=NEW]

DIR is a workdir; for `grow` it may be one step, WORKDIR/checkpoints/STEP. `average` and `grow` make
a workdir, by default DIR/averaged and DIR/grown, and report validation loss, before and after,
unless --noloss is given. All take --json.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from rich.table import Table

from gpt_pjit.checkpoint.average import mean_params, steps_to_average
from gpt_pjit.checkpoint.derived import derived_workdir, no_data_yet
from gpt_pjit.checkpoint.grow import grown_config, grown_params, layer_sources
from gpt_pjit.checkpoint.listing import list_checkpoints
from gpt_pjit.commandline import Answer, Parser
from gpt_pjit.config import Config, MeshConfig
from gpt_pjit.core.checkpointer import missing_parts, read_arrays, saved_steps, write_state
from gpt_pjit.core.errors import EXIT_DONE, ConfigError
from gpt_pjit.core.model import param_shapes
from gpt_pjit.core.runtime import check_new, check_same_data, has_no_data, read_run
from gpt_pjit.core.sharding import make_mesh
from gpt_pjit.core.tokens import TrainingData, open_data
from gpt_pjit.core.training import build
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
    source = run.get("source")
    record = {"source": source, "checkpoints": [dataclasses.asdict(c) for c in listed]}
    table = Table()
    for name in ("step", "date", "MB", "complete"):
        table.add_column(name, justify="right")
    for c in listed:
        table.add_row(f"{c.step:,}", c.date, f"{c.size / 1e6:,.1f}", "yes" if c.complete else "NO")
    made = []
    while source:
        shown = {k: v for k, v in source.items() if k not in ("made", "source") and v is not None}
        made.append("began with " + ", ".join(f"{k} {v}" for k, v in shown.items()))
        source = source.get("source")
    return Answer(EXIT_DONE, record, [f"checkpoints of {path}", table, *made])


def average_command(flags: argparse.Namespace) -> Answer:
    path = _workdir(flags)
    out = flags.out or path / "averaged"
    check_new(out)
    config, run = read_run(path)
    steps = _steps_of(path, run, flags)
    directory = path / "checkpoints"
    # One device and one microbatch: the state's shapes are those of any mesh.
    optim = dataclasses.replace(config.optim, microbatches=1)
    alone = dataclasses.replace(config, optim=optim, mesh=MeshConfig())
    state = build(alone, make_mesh((1, 1, 1), jax.devices()[:1])).state
    tokenizer = run_tokenizer(path, run)
    source = _source("average", path, run, steps=steps)
    with derived_workdir(
        out,
        config,
        source=source,
        data=run["data"],
        tokenizer=(tokenizer.file, tokenizer.content),
        starts=run["starts"],
    ) as draft:
        params = mean_params(directory, steps, state.params)
        rest = {"step": state.step, "opt_state": state.opt_state}
        # The newest one's moments and step: the run can go on from here.
        rest = read_arrays(directory, steps[-1], rest)
        write_state(draft / "checkpoints", steps[-1], state._replace(params=params, **rest))
    losses, words = _losses(path, steps[-1], out, flags.loss)
    shown = f"{out}: the mean of steps {', '.join(map(str, steps))} of {path}\n{words}"
    return Answer(EXIT_DONE, {"workdir": str(out), **source, "validation_loss": losses}, [shown])


def grow_command(flags: argparse.Namespace) -> Answer:
    workdir, step = find_checkpoint(flags.folder)
    out = flags.out or workdir / "grown"
    check_new(out)
    config, run = read_run(workdir)
    sources = layer_sources(config.model.n_layers, flags.layers)
    shapes = param_shapes(config.model, config.data.sequence_length)
    tokenizer = run_tokenizer(workdir, run)
    source = _source("grow", workdir, run, step=step, layers=sources)
    with derived_workdir(
        out,
        grown_config(config, sources),
        source=source,
        data=no_data_yet(str(workdir), tokenizer.sha256, tokenizer.vocab_size),
        tokenizer=(tokenizer.file, tokenizer.content),
        starts=[],
    ) as draft:
        params = grown_params(workdir / "checkpoints", step, shapes, sources)
        write_state(draft / "checkpoints", 0, {"step": np.int32(0), "params": params})
    losses, words = _losses(workdir, step, out, flags.loss)
    shown = f"{out}: {len(sources)} layers, from layers {sources} of step {step}\n{words}"
    return Answer(EXIT_DONE, {"workdir": str(out), **source, "validation_loss": losses}, [shown])


def _source(kind: str, workdir: Path, run: Run, **what: Any) -> dict[str, Any]:
    """What new weights are made of, and under `source` what those were made of in their turn."""
    source = {"kind": kind, "from": str(workdir.resolve()), **what}
    return source | ({"source": run["source"]} if "source" in run else {})


def _losses(
    workdir: Path, step: int, out: Path, wanted: bool
) -> tuple[dict[str, float] | None, str]:
    """Validation loss of `step` and of `out`, on the run's own data, where they are."""
    if not wanted:
        return None, "validation loss not measured"
    config, run = read_run(workdir)
    if has_no_data(run["data"]):
        return None, "validation loss not measured: nothing has trained here yet, on no data"
    try:
        data = _own_data(workdir, config, run)
    except ConfigError as error:
        return None, f"validation loss not measured, the run's data are not here: {error}"
    pair = {"before": workdir / "checkpoints" / str(step), "after": out}
    try:
        losses = {name: held_out_metrics(at, data)["validation/loss"] for name, at in pair.items()}
    except KeyboardInterrupt:  # what was asked for is there, whole
        return None, "validation loss not measured: stopped"
    before, after = losses.values()
    return losses, f"validation loss {before:.4f} at step {step}, {after:.4f} now"


def _own_data(workdir: Path, config: Config, run: Run) -> TrainingData:
    """What the run trained on; of text, what was made of it: here, or where its weights began."""
    wanted, folder, source = config.data, workdir, run.get("source")
    while not (folder / "data").exists() and source:
        folder, source = Path(source["from"]), source.get("source")
    if wanted.text:
        wanted = dataclasses.replace(wanted, text="", path=str(folder / "data"))
    data = open_data(wanted, folder, config.model.vocab_size)
    check_same_data(run["data"], data.identity(), workdir)
    return data


def _workdir(flags: argparse.Namespace) -> Path:
    workdir, step = split_step(flags.folder)
    if step is not None:
        problem = f"{flags.folder} is one step, and {flags.command} takes a run; give {workdir}"
        raise ConfigError([problem], flags.command)
    return workdir


def _steps_of(path: Path, run: Run, flags: argparse.Namespace) -> list[int]:
    find_checkpoint(path)  # raises where there is none, and says why
    if not run["starts"]:
        made = f"{path} was made by {run['source']['kind']} and nothing has trained there yet"
        raise ConfigError([f"{made}: it has one checkpoint, and no mean"], "average")
    saved = saved_steps(path / "checkpoints")
    whole = [step for step in saved if not missing_parts(path / "checkpoints", step)]
    if flags.steps is None:
        return steps_to_average(whole, flags.last, flags.fraction)
    if wrong := sorted(set(flags.steps) - set(whole)):
        no, has = (", ".join(map(str, steps)) for steps in (wrong, whole))
        raise ConfigError([f"{path} has no whole step {no}; it has {has}"], "--steps")
    return sorted(set(flags.steps))


def define(parser: Parser) -> None:
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: Any, summary: str, folder: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary)
        added.set_defaults(run=lambda flags: _started(run, flags))
        added.add_argument("folder", type=Path, metavar="DIR", help=folder)
        added.add_argument("--json", action="store_true", help="JSON instead of words")
        return added

    step = "a workdir, or WORKDIR/checkpoints/STEP"
    command("list", list_command, "what lies in a run", "a workdir")
    average = command("average", average_command, "the mean of late checkpoints", "a workdir")
    which = average.add_mutually_exclusive_group()
    which.add_argument("--last", type=int, default=4, help="how many; default 4")
    which.add_argument("--steps", type=_steps, help="these, 700,800, and not --last of them")
    average.add_argument(
        "--fraction", type=float, default=0.2, help="of the steps, from whose end; default 0.2"
    )
    grow = command("grow", grow_command, "a deeper model that computes the same", step)
    grow.add_argument("--layers", type=int, required=True, help="how many to have")
    for made, name in ((average, "averaged"), (grow, "grown")):
        place = f"the workdir to make; default {name} in that of DIR"
        made.add_argument("--out", type=Path, help=place)
        made.add_argument("--noloss", dest="loss", action="store_false", help="measure no loss")


def _started(run: Any, flags: argparse.Namespace) -> Answer:
    logging.set_verbosity(logging.ERROR)  # Orbax logs every file it touches
    start_devices()
    return run(flags)


def _steps(text: str) -> list[int]:
    if not all(step.isdigit() for step in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of steps, as 700,800 is")
    return [int(step) for step in text.split(",")]
