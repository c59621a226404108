"""Models to and from the format of Hugging Face transformers.

python -m gpt_pjit.hf export --checkpoint=RUN --out=FOLDER [--dtype=bfloat16] [--max_length=8192]
                             [--results=FILE]
python -m gpt_pjit.hf import --source=FOLDER_OR_NAME --out=WORKDIR [--revision=COMMIT]

`export` takes a workdir, whose newest step it writes, or WORKDIR/checkpoints/STEP. `import` makes a
workdir; `python -m gpt_pjit.main --config=FILE --workdir=WORKDIR` trains on from it, with a config
of the same model. Both take --json.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from gpt_pjit.cli import parse_command, report_errors, required
from gpt_pjit.hf import export, import_model
from gpt_pjit.hf.card import read_results

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "export: a workdir, or one step of it.")
_OUT = flags.DEFINE_string("out", None, "The folder to make.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "export: of the weights.")
_MAX_LENGTH = flags.DEFINE_integer(
    "max_length", None, "export: longest context; default four times the trained.", lower_bound=1
)
_RESULTS = flags.DEFINE_string("results", None, "export: JSON of evaluate, for the model card.")
_SOURCE = flags.DEFINE_string("source", None, "import: a folder, or a name on the hub.")
_REVISION = flags.DEFINE_string("revision", None, "import: a commit or tag of the hub.")
_JSON = flags.DEFINE_bool("json", False, "JSON instead of words.")


def export_command() -> tuple[dict[str, Any], str]:
    done = export(
        Path(required(_CHECKPOINT)),
        Path(required(_OUT)),
        dtype=_DTYPE.value,
        max_length=_MAX_LENGTH.value,
        results=read_results(Path(_RESULTS.value)) if _RESULTS.value else None,
    )
    record = dataclasses.asdict(done) | {"folder": str(done.folder)}
    shown = (
        f"{done.folder}: {done.family}, {done.n_params:,} parameters of step {done.step:,}, in "
        f"{_DTYPE.value}, contexts up to {done.max_length:,} tokens"
    )
    return record, shown


def import_command() -> tuple[dict[str, Any], str]:
    source, out = required(_SOURCE), required(_OUT)
    form = import_model(source, Path(out), _REVISION.value)
    record = {"workdir": out, "source": source, **dataclasses.asdict(form)}
    c = form.model
    shown = (
        f"{out}: {form.family}, {c.n_layers} layers, {c.n_heads} heads, width {c.d_model:,}, "
        f"vocabulary {c.vocab_size:,}, context {form.sequence_length:,}"
    )
    return record, shown


COMMANDS = {"export": export_command, "import": import_command}


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # Orbax tells every file it touches
    with report_errors():
        record, shown = COMMANDS[argv[1]]()
    print(json.dumps(record, indent=2) if _JSON.value else shown)


if __name__ == "__main__":
    app.run(main, flags_parser=lambda argv: parse_command(argv, COMMANDS))
