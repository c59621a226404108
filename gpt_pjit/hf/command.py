"""Models to and from the format of Hugging Face transformers.

python -m gpt_pjit.hf export --checkpoint=RUN --out=FOLDER [--dtype=bfloat16] [--max_length=8192]
                             [--results=FILE]
python -m gpt_pjit.hf import --source=FOLDER_OR_NAME --out=WORKDIR [--revision=COMMIT]

`export` takes a workdir, whose newest step it writes, or WORKDIR/checkpoints/STEP. `import` makes a
workdir; `python -m gpt_pjit.main --config=FILE --workdir=WORKDIR` trains on from it, with a config
of the same model. Both take --json.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from absl import logging

from gpt_pjit.commandline import Answer, Parser
from gpt_pjit.core.errors import EXIT_DONE
from gpt_pjit.evaluate import read_results
from gpt_pjit.hf.exporting import export
from gpt_pjit.hf.importing import import_model


def export_command(flags: argparse.Namespace) -> Answer:
    logging.set_verbosity(logging.ERROR)  # Orbax logs every file it touches
    done = export(
        flags.checkpoint,
        flags.out,
        dtype=flags.dtype,
        max_length=flags.max_length,
        results=read_results(flags.results) if flags.results else None,
    )
    record = dataclasses.asdict(done) | {"folder": str(done.folder)}
    shown = (
        f"{done.folder}: {done.family}, {done.n_params:,} parameters of step {done.step:,}, in "
        f"{flags.dtype}, contexts up to {done.max_length:,} tokens"
    )
    return Answer(EXIT_DONE, record, [shown])


def import_command(flags: argparse.Namespace) -> Answer:
    logging.set_verbosity(logging.ERROR)
    form = import_model(flags.source, flags.out, flags.revision)
    record = {"workdir": str(flags.out), "source": flags.source, **dataclasses.asdict(form)}
    c = form.model
    shown = (
        f"{flags.out}: {form.family}, {c.n_layers} layers, {c.n_heads} heads, width {c.d_model:,}, "
        f"vocabulary {c.vocab_size:,}, context {form.sequence_length:,}"
    )
    return Answer(EXIT_DONE, record, [shown])


def define(parser: Parser) -> None:
    commands = parser.add_subparsers(dest="command", required=True)
    to = commands.add_parser("export", help="a checkpoint as a folder for transformers")
    to.set_defaults(run=export_command)
    to.add_argument("--checkpoint", type=Path, required=True, help="a workdir, or one step of it")
    to.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    to.add_argument("--max_length", type=int, help="longest context; default 4 times the trained")
    to.add_argument("--results", type=Path, help="results.json of evaluate, for the card")
    of = commands.add_parser("import", help="a workdir from such a folder")
    of.set_defaults(run=import_command)
    of.add_argument("--source", required=True, help="a folder, or a name on the hub")
    of.add_argument("--revision", help="a commit or tag of the hub")
    for command in (to, of):
        command.add_argument("--out", type=Path, required=True, help="the folder to make")
        command.add_argument("--json", action="store_true", help="JSON instead of words")
