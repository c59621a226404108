"""What all commands share: one parser, configs from files and flags, errors, answers.

A command is a module with `define(parser)`, which adds its flags and says what runs:
`parser.set_defaults(run=function)`. `gpt_pjit COMMAND` and `python -m gpt_pjit.COMMAND` run it
through `run_command`.
"""

import argparse
import importlib
import json
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self

from absl import flags
from absl.flags import argparse_flags
from ml_collections import config_flags
from rich.console import Console, RenderableType

from gpt_pjit.config import Config, from_config_dict
from gpt_pjit.core.cluster import end_before_meeting, expect_meeting
from gpt_pjit.core.console import silence_stdout
from gpt_pjit.core.errors import (
    EXIT_CONFIG,
    EXIT_FAULT,
    EXIT_INTERRUPTED,
    ConfigError,
    HostFailedError,
)
from gpt_pjit.core.files import as_path, file_errors
from gpt_pjit.core.validation import validate

PIPED_WIDTH = 100  # columns of a table where there is no terminal


class Answer(NamedTuple):
    """What a command returns: exit code, the value for --json, and what to show without it."""

    code: int
    record: Any
    shown: Iterable[RenderableType]


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32, width=100)


class Parser(argparse_flags.ArgumentParser):
    """A mistake in the flags is one line and exit 78; absl's own flags work too."""

    def __init__(self, **kwargs: Any):
        kwargs.setdefault("formatter_class", _HelpFormatter)
        super().__init__(allow_abbrev=False, **kwargs)
        self._commands: Any = None

    def add_command(
        self, name: str, run: Callable[[argparse.Namespace], Answer | int | None], help: str
    ) -> Self:
        """The parser of one of several commands, which calls `run(flags)`."""
        if self._commands is None:
            self._commands = self.add_subparsers(dest="command", required=True)
        command: Self = self._commands.add_parser(name, help=help)
        command.set_defaults(run=run)
        return command

    def error(self, message: str) -> NoReturn:
        text = f"{self.prog}: {message}; --help lists all flags"
        end_before_meeting(EXIT_CONFIG, text)
        self.exit(EXIT_CONFIG, f"{text}\n")

    def add_config(self, name: str = "config", help: str = "a file in configs/") -> None:
        """Adds `--NAME FILE` and overrides, `--NAME.optim.steps=100`; gives a `ConfigFile`."""
        self.add_argument(
            f"--{name}", metavar="FILE", help=f"{help}; --{name}.FIELD=VALUE overrides"
        )
        self.set_defaults(config_flags=(*(self.get_default("config_flags") or ()), name))

    def add_distributed(self) -> None:
        """For a command that joins the other hosts, which wait for it from now on."""
        expect_meeting()
        self.add_argument(
            "--distributed",
            action="store_true",
            help="fail if no other hosts are found. Without it they are found and joined too, on a "
            "TPU pod, under srun and mpirun, and from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES "
            "and JAX_PROCESS_ID. It is needed for an indexed Kubernetes Job without TPUs, and for "
            "hosts of a Slurm job reached by ssh",
        )

    def add_json(self) -> None:
        self.add_argument("--json", action="store_true", help="JSON instead of tables")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The parsed flags; all other arguments must override fields of configs."""
        parsed, rest = self.parse_known_args(_joined(argv))
        for name in getattr(parsed, "config_flags", ()):
            overrides, rest = _split_overrides(name, rest)
            path = getattr(parsed, name)
            if overrides and path is None and name == "config":
                self.error(f"{overrides[0]} overrides a config; name the config with --{name}=FILE")
            setattr(parsed, name, ConfigFile(name, path, tuple(overrides)))
        if rest:
            example = "write overrides as --config.optim.steps=100"
            self.error(f"unrecognized arguments: {shlex.join(rest)}; {example}")
        return parsed


def positive(text: str) -> int:
    """The type of a flag that takes a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def local_path(text: str) -> Path:
    """The type of a flag that takes a local file or folder; `~` is the home folder."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is a URL; give a path on this machine")
    return as_path(text)


def any_path(text: str) -> Path:
    """The type of a flag that takes a folder, local or in a bucket: gs://... or s3://..."""
    try:
        return as_path(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error.problems[0])) from None


def comma_separated(text: str) -> list[str]:
    """The type of a flag that takes several names: `a,b`; each once, in order."""
    return [part for part in dict.fromkeys(map(str.strip, text.split(","))) if part]


@dataclass(frozen=True)
class ConfigFile:
    """The value of `--NAME`: a config file with overrides, not yet read."""

    name: str
    path: str | None
    overrides: tuple[str, ...]

    @property
    def stem(self) -> str:
        return Path(self.path or "").stem

    @property
    def arguments(self) -> list[str]:
        """The arguments that name it, for another process."""
        return [f"--{self.name}={self.path}", *self.overrides]

    def read(self) -> Config:
        """The validated config; raises ConfigError."""
        known = ", ".join(str(path) for path in sorted(Path("configs").glob("*.py")))
        known = f"configs here: {known}" if known else "run from the checkout, which holds configs/"
        flag = f"--{self.name}"
        if self.path is None:
            raise ConfigError([f"give one with {flag}=FILE; {known}"], flag)
        # Separate flags: nothing global is defined, and a second config can be read.
        values = flags.FlagValues()
        argv = [sys.argv[0], *self.arguments]
        holder = config_flags.DEFINE_config_file(
            self.name, flag_values=values, sys_argv=argv, lock_config=True
        )
        try:
            values(argv)
            fields = holder.value.to_dict()
        except OSError:
            raise ConfigError([f"no such file: {self.path}; {known}"], flag) from None
        except SyntaxError as error:
            raise ConfigError([f"{self.path} is not valid Python: {error}"], flag) from None
        except AttributeError as error:
            if "to_dict" in str(error):
                problem = f"get_config() of {self.path} does not return a config; {known}"
                raise ConfigError([problem], flag) from None
            raise ConfigError([_one_line(error)], self.path) from None
        except (flags.Error, KeyError, TypeError, ValueError) as error:
            raise ConfigError([_one_line(error)], self.path) from None
        config = from_config_dict(fields, self.path)
        validate(config, self.path)
        return config


def run_command(module: str, prog: str, argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command of a module and exits; its imports run here, so Ctrl-C can stop them."""
    with report_errors():
        command = importlib.import_module(module)
        parser = Parser(prog=prog, description=command.__doc__)
        command.define(parser)
        run_parsed(parser.parse(sys.argv[1:] if argv is None else argv))


def run_parsed(parsed: argparse.Namespace) -> NoReturn:
    """Calls `parsed.run(parsed)`, which returns an exit code, None for 0, or an `Answer`."""
    result = parsed.run(parsed)
    if isinstance(result, Answer):
        show(result.record, result.shown, as_json=parsed.json)
        result = result.code
    sys.stdout.flush()
    sys.exit(result or 0)


@contextmanager
def report_errors() -> Iterator[None]:
    """Exits with a message on a ConfigError or Ctrl-C; other errors keep their traceback.

    Processes that wait for this one, because they have yet to meet, end with it. Ends quietly when
    the reader of a pipe is gone, as with `head`.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # characters that the terminal lacks must not end a run
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        silence_stdout()
    except ConfigError as error:
        end_before_meeting(error.code, str(error))
        print(error, file=sys.stderr)
        sys.exit(error.code)
    except HostFailedError as error:  # all know of it
        print(error, file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt as stopped:
        print("\nstopped", file=sys.stderr)
        sys.exit(getattr(stopped, "code", EXIT_INTERRUPTED))
    except Exception as error:
        end_before_meeting(EXIT_FAULT, "".join(traceback.format_exception(error)).rstrip())
        if not isinstance(error, OSError) or not error.strerror:
            raise
        where = f"{error.filename}: " if error.filename else ""
        # A full disk, or a folder without permission.
        print(f"{where}{error.strerror}", file=sys.stderr)
        sys.exit(EXIT_FAULT)


def write_page(path: str, text: str) -> None:
    with file_errors(f"--html={path} cannot be written", "flags"):
        Path(path).write_text(text, encoding="utf-8")


def show(record: Any, shown: Iterable[RenderableType], *, as_json: bool) -> None:
    """Prints a command's answer: the record as JSON, or what is shown to a person."""
    if as_json:
        print(json.dumps(record, indent=2, default=str))
        return
    console = _Console(highlight=False)
    console.width = console.width if console.is_terminal else PIPED_WIDTH
    for renderable in shown:
        console.print(renderable, soft_wrap=isinstance(renderable, str), markup=False)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # for report_errors; rich would exit with 1


def _joined(argv: Sequence[str]) -> list[str]:
    """Joins `--config.a.b value` into one argument; otherwise the value would be positional.

    Boolean flags may stand alone.
    """
    joined: list[str] = []
    for argument in argv:
        waits = joined and re.fullmatch(r"--?\w+\.[\w.]+", joined[-1])
        if waits and not argument.startswith("-"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _split_overrides(name: str, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The `arguments` that override fields of the config `name`, and the others."""
    pattern = re.compile(rf"--?(no)?{name}\.")
    overrides = [argument for argument in arguments if pattern.match(argument)]
    return overrides, [argument for argument in arguments if argument not in overrides]


def _one_line(error: Exception) -> str:
    """The message of an absl or ml_collections error, without quotes or a traceback."""
    text = str(error.args[0] if error.args else error)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1].replace("\\n", "\n").replace("\\'", "'")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if "Traceback" in text else "; ".join(lines)
