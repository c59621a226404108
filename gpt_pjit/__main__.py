"""The front door: `gpt_pjit COMMAND`, or `python -m gpt_pjit COMMAND`."""

import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from gpt_pjit.commandline import Parser, report_errors, run_parsed

COMMANDS = {
    "train": ("gpt_pjit.main", "train a GPT, or resume a run"),
    "report": ("gpt_pjit.report.command", "one look at runs: a page of all that they recorded"),
    "doctor": ("gpt_pjit.doctor.command", "check that this machine or pod is ready to train"),
    "plan": ("gpt_pjit.plan.command", "compile a step for absent hardware: memory, time, cost"),
    "coordinates": (
        "gpt_pjit.coordinates.command",
        "check that what is tuned at one width holds at others",
    ),
    "partition": ("gpt_pjit.partition.command", "explain, lint, compare and lock a placement"),
    "data": ("gpt_pjit.data.command", "make, inspect and verify token datasets"),
    "evaluate": ("gpt_pjit.evaluate.command", "score a checkpoint"),
    "generate": ("gpt_pjit.generate.command", "continue texts with a checkpoint"),
    "checkpoint": (
        "gpt_pjit.checkpoint.command",
        "list, verify, inspect, average and grow checkpoints",
    ),
    "hf": ("gpt_pjit.hf.command", "export to and import from Hugging Face transformers"),
}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    argv = sys.argv[1:] if argv is None else argv
    with report_errors():
        parser = Parser(prog="gpt_pjit", description=_description())
        commands = parser.add_subparsers(required=True, metavar="COMMAND", help="one of these")
        for name, (module, _) in COMMANDS.items():
            command = commands.add_parser(name)
            if argv[:1] == [name]:  # no other is imported: --help is instant
                loaded = importlib.import_module(module)
                command.description = loaded.__doc__
                loaded.define(command)
        run_parsed(parser.parse(argv))


def _description() -> str:
    lines = (f"  {name:12}{summary}" for name, (_, summary) in COMMANDS.items())
    return "\n".join(("Train GPT language models on many hosts.", "", "commands:", *lines))


if __name__ == "__main__":
    main()
