"""Train a GPT, or resume a run.

python -m gpt_pjit.main --config=configs/quickstart.py [--config.optim.steps=100 ...]
python -m gpt_pjit.main --config=FILE --workdir=NEW --from=WORKDIR/checkpoints/STEP
python -m gpt_pjit.main --config=FILE --config.optim.steps=2000 --allow_change=optim.steps
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gpt_pjit.commandline import Parser, any_path, comma_separated, run_command


def define(parser: Parser) -> None:
    parser.add_config()
    workdir = "the run's folder, or gs://... or s3://...; default runs/<config name>"
    parser.add_argument("--workdir", type=any_path, help=workdir)
    text = "begin from WORKDIR/checkpoints/STEP of another run, or WORKDIR, for its newest step"
    parser.add_argument("--from", dest="origin", type=any_path, metavar="WORKDIR", help=text)
    text = "fields, by commas, that may differ from those of the run that resumes: optim.steps"
    parser.add_argument("--allow_change", type=comma_separated, default=[], help=text)
    parser.add_distributed()
    parser.set_defaults(run=main)


def main(flags: argparse.Namespace) -> int:
    config = flags.config.read()
    # Imported late: --help and mistakes in a config are answered at once.
    from absl import logging

    from gpt_pjit.core.runtime import Origin, ending_together, initialize_devices
    from gpt_pjit.core.train import train
    from gpt_pjit.data import prepare_text
    from gpt_pjit.generate import sample
    from gpt_pjit.trained import split_step

    logging.set_verbosity(logging.WARNING)  # Orbax logs every file it writes
    rows = config.data.batch_size // config.optim.microbatches
    with ending_together():
        initialize_devices(config.mesh, rows, distributed=flags.distributed)
        workdir = flags.workdir or Path("runs") / flags.config.stem
        origin = Origin(*split_step(flags.origin)) if flags.origin else None
        return train(config, workdir, prepare_text, sample, origin, flags.allow_change)


if __name__ == "__main__":
    run_command("gpt_pjit.main", prog="python -m gpt_pjit.main")
