"""Score a checkpoint.

python -m gpt_pjit.evaluate --checkpoint=runs/quickstart --tasks=file:README.md
python -m gpt_pjit.evaluate --checkpoint=DIR --tasks=wikitext2,lambada,piqa --data_dir=DIR
python -m gpt_pjit.evaluate --help
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from gpt_pjit.commandline import Parser, comma_separated, positive, show
from gpt_pjit.core.checkpointer import fingerprint
from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.core.runtime import write_whole
from gpt_pjit.core.validation import CHOICES
from gpt_pjit.evaluate.report import ALL_PUBLISHED, comparison_rows, markdown, notes, tables
from gpt_pjit.evaluate.results import Row, results_record, row_of
from gpt_pjit.evaluate.scorer import Scorer
from gpt_pjit.evaluate.tasks import KNOWN, prepare_jobs, prepare_tasks
from gpt_pjit.evaluate.texts import Result
from gpt_pjit.trained import Trained, load_trained, start_devices


def run(flags: argparse.Namespace) -> None:
    others = comparison_rows(flags.compare, flags.tasks)
    if flags.out:
        _make_folder(flags.out)
    tasks = prepare_tasks(flags.tasks, flags.data_dir)
    start_devices(tensor=flags.tensor, distributed=flags.distributed)
    trained = load_trained(flags.checkpoint, tensor=flags.tensor, dtype=flags.dtype)
    scorer = Scorer(trained, window=flags.window, rows=flags.rows)
    jobs = prepare_jobs(tasks, scorer, _checked_stride(flags.stride, scorer.window))
    settings = _settings(flags, trained)
    results: dict[str, Result] = {}
    try:
        for name, compute in jobs.items():
            results[name] = compute()
            record = results_record(results, settings)
            _write(flags.out, record, others)
    finally:  # what has been scored is shown, whatever befell the next task
        if results and jax.process_index() == 0:
            show(record, _shown(row_of(record), others), as_json=flags.json)


def _write(out: Path | None, record: dict[str, Any], others: Sequence[Row]) -> None:
    """The files of `--out`, as of the tasks that are done."""
    if out is None or jax.process_index() != 0:
        return
    write_whole(out / "results.json", json.dumps(record, indent=2) + "\n")
    write_whole(out / "results.md", markdown(row_of(record), others))


def _shown(mine: Row, others: Sequence[Row]) -> Iterator[RenderableType]:
    for table in tables(mine, others):
        shown = RichTable(title=table.title, title_justify="left")
        for name in table.header:
            shown.add_column(name, overflow="fold")
        for row in table.rows:
            shown.add_row(*map(Text, row))
        yield shown
    for note in notes(mine, others):
        yield Text(note, style="bold red") if note.startswith("WARNING") else note


def define(parser: Parser) -> None:
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("--checkpoint", required=True, help="a workdir, or WORKDIR/checkpoints/STEP")
    add("--tasks", type=_tasks, required=True, help=f"by commas, of: {KNOWN}")
    add("--data_dir", type=Path, help="folder of the files as published; default: the hub")
    add("--window", type=int, help="longest input in tokens; default: as trained")
    add("--stride", type=int, help="tokens scored a window; default: all, without overlap")
    add("--rows", type=positive, default=4, help="full windows at once on each device")
    add("--tensor", type=positive, default=1, help="devices that split the model")
    add("--dtype", choices=CHOICES["model.dtype"], default="", help="default: the run's")
    add("--compare", type=comma_separated, default=[], help=f"results.json files, {ALL_PUBLISHED}")
    add("--name", help="of this model in tables; default: the workdir's")
    add("--out", type=Path, help="folder for results.json and results.md")
    add("--json", action="store_true", help="JSON instead of tables")
    add("--distributed", action="store_true", help="let JAX find the other hosts")


def _tasks(text: str) -> list[str]:
    if names := comma_separated(text):
        return names
    raise argparse.ArgumentTypeError(f"{text!r} names no task; known: {KNOWN}")


def _make_folder(path: Path) -> None:
    """Before the work, so that its results have a place."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        problem = Problem("out", str(path), f"cannot be written: {error.strerror}", "name a folder")
        raise ConfigError([problem], "flags") from None


def _checked_stride(stride: int | None, window: int) -> int:
    if stride is not None and not 1 <= stride <= window:
        constraint = f"must be between 1 and the window, {window}"
        raise ConfigError([Problem("stride", stride, constraint, f"try {max(1, window // 2)}")])
    return window if stride is None else stride


def _name(workdir: Path) -> str:
    """The workdir's, after that of the run it lies in, as averages do."""
    inside = (workdir.parent / "run.json").exists()
    return f"{workdir.parent.name}/{workdir.name}" if inside else workdir.name


def _settings(flags: argparse.Namespace, trained: Trained) -> dict[str, Any]:
    return {
        "name": flags.name or _name(trained.workdir.resolve()),
        "checkpoint": str(trained.workdir),
        "step": trained.step,
        "fingerprint": fingerprint(trained.workdir / "checkpoints", trained.step),
        "dtype": trained.config.model.dtype,
        "tokenizer": trained.tokenizer.name,
        "mesh": dict(trained.mesh.shape),
    }
