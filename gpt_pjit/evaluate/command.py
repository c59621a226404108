"""Score a checkpoint: bits per byte of texts, and any task of lm-eval.

python -m gpt_pjit.evaluate --checkpoint=runs/quickstart --tasks=file:README.md
python -m gpt_pjit.evaluate --checkpoint=DIR --tasks=piqa,lambada_openai,text8 --data_dir=DIR
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import jax

from gpt_pjit.checkpoint_arrays import fingerprint
from gpt_pjit.commandline import Parser, any_path, comma_separated, local_path, positive, show
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.files import file_errors, write_whole
from gpt_pjit.core.runtime import ending_together
from gpt_pjit.core.validation import CHOICES
from gpt_pjit.evaluate.core_metric import CORE
from gpt_pjit.evaluate.followers import follow
from gpt_pjit.evaluate.orders import load_everywhere, order
from gpt_pjit.evaluate.report import ALL_PUBLISHED, ModelResults, comparisons, report
from gpt_pjit.evaluate.scorer import Scorer
from gpt_pjit.evaluate.tasks import prepare_jobs, require_packages
from gpt_pjit.evaluate.texts import FILE, LENGTHS, TEXTS
from gpt_pjit.pages import markdown, terminal
from gpt_pjit.trained import Trained, start_devices

KNOWN = f"{', '.join(TEXTS)}, {FILE}PATH, {LENGTHS}TEXT, {CORE}, and any task or group of lm-eval"


@ending_together()
def run(flags: argparse.Namespace) -> None:
    start_devices(tensor=flags.tensor, distributed=flags.distributed)
    if jax.process_index() != 0:
        follow()
        return
    if not flags.tasks:
        raise ConfigError([f"--tasks names no task; known: {KNOWN}"], "flags")
    others = comparisons(flags.compare, flags.tasks)
    if flags.out:  # before the work, so that its results have a place
        with file_errors(f"--out={flags.out} cannot be written", "flags"):
            flags.out.mkdir(parents=True, exist_ok=True)
    require_packages(flags.tasks)
    trained = load_everywhere(flags.checkpoint, tensor=flags.tensor, dtype=flags.dtype)
    scorer = Scorer(trained, window=flags.window, rows=flags.rows)
    jobs = prepare_jobs(
        flags.tasks, scorer, flags.stride, flags.data_dir, flags.num_fewshot, flags.limit
    )
    mine = _nothing_yet(flags.name, trained)
    try:
        for job in jobs:
            for task, result in job().items():
                mine.tasks[task], mine.settings["tasks"][task] = result.metrics, result.details
            if flags.out:
                _write(flags.out, mine, others)
    finally:  # what has been scored is shown even when a later task fails
        if mine.tasks:
            show(mine.record, terminal(report(mine, others)), as_json=flags.json)
    order("end")


def _nothing_yet(name: str | None, trained: Trained) -> ModelResults:
    """The results of `trained`, without a task."""
    workdir = trained.workdir.resolve()
    if not name:  # the workdir's, after that of the run that holds it, as with averages
        inside = (workdir.parent / "run.json").exists()
        name = f"{workdir.parent.name}/{workdir.name}" if inside else workdir.name
    settings = {
        "name": name,
        "checkpoint": str(trained.workdir),
        "step": trained.step,
        "fingerprint": fingerprint(trained.workdir / "checkpoints", trained.step),
        "dtype": trained.model.config.dtype,
        "tokenizer": trained.tokenizer.name,
        "mesh": dict(trained.mesh.shape),
        "tasks": {},
    }
    return ModelResults(name, {}, settings)


def _write(out: Path, mine: ModelResults, others: Sequence[ModelResults]) -> None:
    """The files of `--out`, with the tasks that are done."""
    write_whole(out / "results.json", json.dumps(mine.record, indent=2) + "\n")
    text = f"# Evaluation of {mine.name}\n\n{markdown(report(mine, others))}"
    write_whole(out / "results.md", text)


def define(parser: Parser) -> None:
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("--checkpoint", type=any_path, required=True, help="a workdir, or its checkpoints/STEP")
    add("--tasks", type=comma_separated, required=True, help=f"comma-separated: {KNOWN}")
    add("--data_dir", type=local_path, help="local data: a folder for each task")
    add("--num_fewshot", type=int, help="examples in the prompts of lm-eval's tasks")
    add("--limit", type=float, help="items of each task; below 1, a share of them")
    add("--window", type=positive, help="longest input in tokens; default: as trained")
    add("--stride", type=positive, help="tokens scored per window of a text; default: the window")
    add("--rows", type=positive, default=4, help="full windows at once on each device")
    add("--tensor", type=positive, default=1, help="number of devices to split the model over")
    add("--dtype", choices=CHOICES["model.dtype"], default="", help="default: as trained")
    text = f"comma-separated results.json files or folders, or `{ALL_PUBLISHED}`"
    add("--compare", type=comma_separated, default=[], help=text)
    add("--name", help="name of this model in tables; default: its workdir")
    add("--out", type=local_path, help="folder for results.json and results.md")
    add("--json", action="store_true", help="JSON instead of tables")
    parser.add_distributed()
