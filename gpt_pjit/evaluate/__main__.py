"""Score a checkpoint.

python -m gpt_pjit.evaluate --checkpoint=runs/quickstart --tasks=file:README.md
python -m gpt_pjit.evaluate --checkpoint=DIR --tasks=wikitext2,lambada,piqa --data_dir=DIR
python -m gpt_pjit.evaluate --help
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table as RichTable

from gpt_pjit.cli import Parser, report_errors
from gpt_pjit.errors import ConfigError, Problem
from gpt_pjit.evaluate.report import (
    ALL_PUBLISHED,
    comparison_rows,
    markdown,
    notes,
    results_record,
    tables,
)
from gpt_pjit.evaluate.scorer import Scorer
from gpt_pjit.evaluate.tasks import KNOWN, check_tasks, prepare_tasks
from gpt_pjit.trained import Trained, load_trained, start_devices

PIPED_WIDTH = 120


def main(argv: Sequence[str]) -> None:
    flags = _parser().parse_args(argv)
    with report_errors():
        names = _checked_names(flags)
        others = comparison_rows(flags.compare, names)
        tasks = prepare_tasks(names, flags.data_dir)
        start_devices(tensor=flags.tensor, distributed=flags.distributed)
        trained = load_trained(flags.checkpoint, tensor=flags.tensor, dtype=flags.dtype)
        scorer = Scorer(trained, window=flags.window, rows=flags.rows)
        stride = _checked_stride(flags.stride, scorer.window)
        check_tasks(names, trained)
        results = {name: compute(scorer, stride) for name, compute in tasks.items()}
    record = results_record(results, _settings(flags, trained))
    if jax.process_index() != 0:
        return
    if flags.out:
        flags.out.mkdir(parents=True, exist_ok=True)
        (flags.out / "results.json").write_text(json.dumps(record, indent=2) + "\n")
        (flags.out / "results.md").write_text(markdown(record, others), encoding="utf-8")
    if flags.json:
        print(json.dumps(record, indent=2))
        return
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else PIPED_WIDTH
    for table in tables(record, others):
        shown = RichTable(*table.header, title=table.title, title_justify="left")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown, markup=False)
    for note in notes(record, others):
        console.print(note, style="bold red" if note.startswith("WARNING") else "", markup=False)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m gpt_pjit.evaluate", description="Score a checkpoint.")
    add = parser.add_argument
    add("--checkpoint", required=True, help="a workdir, or WORKDIR/checkpoints/STEP")
    add("--tasks", required=True, help=f"by commas, of: {KNOWN}")
    add("--data_dir", type=Path, help="folder of the files as published; default: the hub")
    add("--window", type=int, help="longest input in tokens; default: as trained")
    add("--stride", type=int, help="tokens scored a window; default: all, without overlap")
    add("--rows", type=int, default=4, help="full windows at once on each device")
    add("--tensor", type=int, default=1, help="devices that split the model")
    add("--dtype", default="", help="of matmul operands, float32 or bfloat16; default: the run's")
    add("--compare", type=_comma, default=[], help=f"results.json files, or {ALL_PUBLISHED}")
    add("--name", help="of this model in tables; default: the workdir's")
    add("--out", type=Path, help="folder for results.json and results.md")
    add("--json", action="store_true", help="JSON instead of tables")
    add("--distributed", action="store_true", help="let JAX find the other hosts")
    return parser


def _comma(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _checked_names(flags: argparse.Namespace) -> list[str]:
    names = list(dict.fromkeys(_comma(flags.tasks)))
    problems: list[Problem | str] = []
    if not names:
        problems.append(Problem("tasks", flags.tasks, "names no task", f"known: {KNOWN}"))
    for field in ("rows", "tensor"):
        if (value := getattr(flags, field)) < 1:
            problems.append(Problem(field, value, "must be 1 or more", "try 1"))
    if flags.dtype not in ("", "float32", "bfloat16"):
        problems.append(Problem("dtype", flags.dtype, "no such dtype", "float32 or bfloat16"))
    if problems:
        raise ConfigError(problems, "flags")
    return names


def _checked_stride(stride: int | None, window: int) -> int:
    if stride is not None and not 1 <= stride <= window:
        constraint = f"must be between 1 and the window, {window}"
        raise ConfigError([Problem("stride", stride, constraint, f"try {max(1, window // 2)}")])
    return window if stride is None else stride


def _settings(flags: argparse.Namespace, trained: Trained) -> dict[str, Any]:
    return {
        "name": flags.name or trained.workdir.resolve().name,
        "checkpoint": str(trained.workdir),
        "step": trained.step,
        "dtype": trained.config.model.dtype,
        "tokenizer": trained.tokenizer.name,
        "mesh": dict(trained.mesh.shape),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
