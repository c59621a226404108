"""Models to and from the format of Hugging Face transformers.

python -m gpt_pjit.hf export --checkpoint=RUN --out=FOLDER [--dtype=bfloat16] [--max_length=8192]
                             [--results=FILE]
python -m gpt_pjit.hf import --source=FOLDER_OR_NAME --out=WORKDIR [--revision=COMMIT]

`export` takes a workdir, whose newest step it writes, or WORKDIR/checkpoints/STEP. `import` makes a
workdir; `python -m gpt_pjit.main --config=FILE --workdir=WORKDIR` trains on from it, with a config
of the same model. Both take --json.
"""

import argparse
import dataclasses

from absl import logging

from gpt_pjit.commandline import Answer, Parser, any_path, local_path, positive
from gpt_pjit.core.errors import EXIT_DONE
from gpt_pjit.evaluate import read_results
from gpt_pjit.hf.exporting import export
from gpt_pjit.hf.importing import import_model


def export_command(flags: argparse.Namespace) -> Answer:
    logging.set_verbosity(logging.ERROR)  # Orbax logs every file it touches
    results = read_results(flags.results) if flags.results else None
    options = {"dtype": flags.dtype, "max_length": flags.max_length, "results": results}
    done = export(flags.checkpoint, flags.out, **options)
    shown = (
        f"{flags.out}: {done['family']}, {done['n_params']:,} parameters of step {done['step']:,}, "
        f"in {flags.dtype}, contexts up to {done['max_length']:,} tokens"
    )
    return Answer(EXIT_DONE, done, [shown])


def import_command(flags: argparse.Namespace) -> Answer:
    logging.set_verbosity(logging.ERROR)
    hf = import_model(flags.source, flags.out, flags.revision)
    record = {"workdir": str(flags.out), "source": flags.source, **dataclasses.asdict(hf)}
    c = hf.model
    shown = (
        f"{flags.out}: {hf.name}, {c.n_layers} layers, {c.n_heads} heads, width {c.d_model:,}, "
        f"vocabulary {c.vocab_size:,}, context {hf.sequence_length:,}"
    )
    return Answer(EXIT_DONE, record, [shown])


def define(parser: Parser) -> None:
    out = parser.add_command("export", export_command, "a checkpoint as a folder for transformers")
    out.add_argument("--checkpoint", type=any_path, required=True, help="a workdir, or one step")
    out.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights"
    )
    longest = "longest context; default: that of training, or four times that with ALiBi"
    out.add_argument("--max_length", type=positive, help=longest)
    out.add_argument("--results", type=local_path, help="results.json of evaluate, for the card")
    into = parser.add_command("import", import_command, "a workdir from such a folder")
    into.add_argument("--source", required=True, help="a folder, or a name on the hub")
    into.add_argument("--revision", help="a commit or tag of the hub")
    for command, kind in ((out, local_path), (into, any_path)):
        command.add_argument("--out", type=kind, required=True, help="the folder to make")
        command.add_json()
