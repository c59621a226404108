"""Score a checkpoint: bits per byte of texts, and any task of lm-eval.

python -m gpt_pjit.evaluate --checkpoint=runs/quickstart --tasks=file:README.md
python -m gpt_pjit.evaluate --checkpoint=DIR --tasks=piqa,lambada_openai,text8 --data_dir=DIR
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

from gpt_pjit.checkpoint_arrays import fingerprint
from gpt_pjit.commandline import Parser, comma_separated, positive, show
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.runtime import write_whole
from gpt_pjit.core.validation import CHOICES
from gpt_pjit.evaluate.harness import Options
from gpt_pjit.evaluate.report import ALL_PUBLISHED, comparisons, markdown, notes, tables
from gpt_pjit.evaluate.results import ModelResults, Result, from_record, results_record
from gpt_pjit.evaluate.scorer import Scorer
from gpt_pjit.evaluate.tasks import KNOWN, prepare_jobs, prepare_tasks
from gpt_pjit.trained import Trained, load_trained, start_devices


def run(flags: argparse.Namespace) -> None:
    others = comparisons(flags.compare, flags.tasks)
    if flags.out:
        _make_folder(flags.out)
    options = Options(flags.data_dir, flags.num_fewshot, flags.limit)
    tasks = prepare_tasks(flags.tasks, options)
    start_devices(tensor=flags.tensor, distributed=flags.distributed)
    trained = load_trained(flags.checkpoint, tensor=flags.tensor, dtype=flags.dtype)
    scorer = Scorer(trained, window=flags.window, rows=flags.rows)
    jobs = prepare_jobs(tasks, scorer, _checked_stride(flags.stride, scorer.window))
    settings = _settings(flags, trained)
    results: dict[str, Result] = {}
    try:
        for job in jobs.values():
            results |= job()
            record = results_record(results, settings)
            _write(flags.out, record, others)
    finally:  # what has been scored is shown even when a later task fails
        if results and jax.process_index() == 0:
            show(record, _shown(from_record(record), others), as_json=flags.json)


def _write(out: Path | None, record: dict[str, Any], others: Sequence[ModelResults]) -> None:
    """The files of `--out`, with the tasks that are done."""
    if out is None or jax.process_index() != 0:
        return
    write_whole(out / "results.json", json.dumps(record, indent=2) + "\n")
    write_whole(out / "results.md", markdown(from_record(record), others))


def _shown(mine: ModelResults, others: Sequence[ModelResults]) -> Iterator[RenderableType]:
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
    add("--tasks", type=_tasks, required=True, help=f"comma-separated: {KNOWN}")
    add("--data_dir", type=Path, help="local data: a folder for each task")
    add("--num_fewshot", type=int, help="examples in the prompts of lm-eval's tasks")
    add("--limit", type=_limit, help="items of each of lm-eval's tasks; below 1, a share of them")
    add("--window", type=int, help="longest input in tokens; default: as trained")
    add("--stride", type=int, help="tokens scored per window of a text; default: the window")
    add("--rows", type=positive, default=4, help="full windows at once on each device")
    add("--tensor", type=positive, default=1, help="devices that split the model")
    add("--dtype", choices=CHOICES["model.dtype"], default="", help="default: as trained")
    add("--compare", type=comma_separated, default=[], help=f"results.json files, {ALL_PUBLISHED}")
    add("--name", help="name of this model in tables; default: its workdir")
    add("--out", type=Path, help="folder for results.json and results.md")
    add("--json", action="store_true", help="JSON instead of tables")
    add("--distributed", action="store_true", help="let JAX find the other hosts")


def _tasks(text: str) -> list[str]:
    if names := comma_separated(text):
        return names
    raise argparse.ArgumentTypeError(f"{text!r} names no task; known: {KNOWN}")


def _limit(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf") or (value > 1 and not value.is_integer()):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of items nor a share")
    return int(value) if value >= 1 else value


def _make_folder(path: Path) -> None:
    """Before the work, so that its results have a place."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise ConfigError([f"--out={path} cannot be written: {error.strerror}"], "flags") from None


def _checked_stride(stride: int | None, window: int) -> int:
    if stride is not None and not 1 <= stride <= window:
        raise ConfigError([f"--stride={stride} must be between 1 and the window, {window}"])
    return window if stride is None else stride


def _name(workdir: Path) -> str:
    """The workdir's name, after that of the run that holds it, as with averages."""
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
