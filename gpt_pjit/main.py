"""Train a GPT, or resume a run.

python -m gpt_pjit.main --config=configs/quickstart.py [--config.optim.steps=100 ...]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gpt_pjit.commandline import Parser, local_path, run_command


def define(parser: Parser) -> None:
    parser.add_config()
    parser.add_argument(
        "--workdir", type=local_path, help="the run's folder; default runs/<config name>"
    )
    parser.add_distributed()
    parser.set_defaults(run=main)


def main(flags: argparse.Namespace) -> int:
    config = flags.config.read()
    # Imported late: --help and mistakes in a config are answered at once.
    from absl import logging

    from gpt_pjit.core.runtime import ending_together, initialize_devices
    from gpt_pjit.core.train import train
    from gpt_pjit.data import prepare_text
    from gpt_pjit.generate import sample

    logging.set_verbosity(logging.WARNING)  # Orbax logs every file it writes
    rows = config.data.batch_size // config.optim.microbatches
    with ending_together():
        initialize_devices(config.mesh, rows, distributed=flags.distributed)
        workdir = flags.workdir or Path("runs") / flags.config.stem
        return train(config, workdir, prepare_text, sample)


if __name__ == "__main__":
    run_command("gpt_pjit.main", prog="python -m gpt_pjit.main")
