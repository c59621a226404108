"""Train a GPT, or resume a run.

python -m gpt_pjit.main --config=configs/quickstart.py [--config.optim.steps=100 ...]
python -m gpt_pjit.main --config=FILE --workdir=NEW --from=WORKDIR/checkpoints/STEP
python -m gpt_pjit.main --config=FILE --config.optim.steps=2000 --allow_change=optim.steps
"""

import argparse
from functools import partial
from pathlib import Path

from gpt_pjit.commandline import Parser, any_path, comma_separated, run_command
from gpt_pjit.trackers import WRITERS, track


def define(parser: Parser) -> None:
    parser.add_config()
    workdir = "the run's folder, or gs://... or s3://...; default runs/<config name>"
    parser.add_argument("--workdir", type=any_path, help=workdir)
    text = "begin from WORKDIR/checkpoints/STEP of another run, or WORKDIR, for its newest step"
    parser.add_argument("--from", dest="origin", type=any_path, metavar="WORKDIR", help=text)
    text = "comma-separated fields that may differ from the recorded run, e.g. optim.steps"
    parser.add_argument("--allow_change", type=comma_separated, default=[], help=text)
    text = "trace steps A to B into WORKDIR/profile/A; SIGUSR1 traces the next 3"
    parser.add_argument("--profile", type=_steps, default=range(0), metavar="A:B", help=text)
    text = f"comma-separated trackers that also get the metrics: {', '.join(WRITERS)}"
    parser.add_argument("--track", type=_trackers, default=[], metavar="NAMES", help=text)
    parser.add_distributed()
    parser.set_defaults(run=main)


def main(flags: argparse.Namespace) -> int:
    config = flags.config.read()
    # Imported late: --help and mistakes in a config are answered at once.
    from absl import logging

    from gpt_pjit.core.runtime import Origin, ending_together, initialize_devices
    from gpt_pjit.core.train import Tools, train
    from gpt_pjit.data import prepare_text
    from gpt_pjit.evaluate import tasks_in_run
    from gpt_pjit.generate import sample
    from gpt_pjit.trained import split_step

    logging.set_verbosity(logging.WARNING)  # Orbax logs every file it writes
    rows = config.data.batch_size // config.optim.microbatches
    with ending_together():
        initialize_devices(config.mesh, rows, distributed=flags.distributed)
        workdir = flags.workdir or Path("runs") / flags.config.stem
        origin = Origin(*split_step(flags.origin)) if flags.origin else None
        file = Path(flags.config.path)
        plans = sorted(file.parent.glob(f"plans/{file.stem}.*.json"))
        tools = Tools(prepare_text, sample, partial(track, flags.track), tasks_in_run)
        return train(config, workdir, tools, origin, flags.allow_change, plans, flags.profile)


def _trackers(text: str) -> list[str]:
    names = comma_separated(text)
    if unknown := [name for name in names if name not in WRITERS]:
        problem = f"{unknown[0]!r} is not among {', '.join(WRITERS)}"
        raise argparse.ArgumentTypeError(problem)
    return names


def _steps(text: str) -> range:
    """The steps of `A:B`, both included."""
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last)):
        problem = f"{text!r} is not A:B, a first and a last step; for example 100:102"
        raise argparse.ArgumentTypeError(problem)
    return range(int(first), int(last) + 1)


if __name__ == "__main__":
    run_command("gpt_pjit.main", prog="python -m gpt_pjit.main")
