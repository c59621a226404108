"""What every command line shares: reading the config, and errors as one message and exit code."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags
from rich.console import Console, RenderableType

from gpt_pjit.config import Config, from_config_dict
from gpt_pjit.core.errors import EXIT_CONFIG, EXIT_INTERRUPTED, ConfigError, Problem
from gpt_pjit.core.runtime import forget_reader
from gpt_pjit.core.validation import validate

PIPED_WIDTH = 100

# What a command gives back: exit code, value for --json, and what to show without.
Answer = tuple[int, Any, Iterable[RenderableType]]


class Parser(argparse.ArgumentParser):
    """For commands that read no config: a mistake in their flags is one line and exit 78."""

    def __init__(self, **kwargs: Any):
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> Any:
        self.exit(EXIT_CONFIG, f"{self.prog}: {message}; --help lists all flags\n")


def count(text: str) -> int:
    """The type of a flag of `Parser` that is a number from 1 on."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses flags; a mistake in them, or in the config file, ends with one line and exit 78."""
    try:
        rest = flags.FLAGS(argv)
    except SystemExit:  # after --help, with the 1 that is ours for a check that failed
        sys.exit(0)
    except SyntaxError as error:
        _fail(f"{_config_argument(argv)} is no Python file, as configs are: {error}")
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        _fail(f"{_config_argument(argv)}: {_one_line(error)}")
    if rest[1:]:
        _fail(
            f"unexpected arguments: {' '.join(rest[1:])}; overrides read --config.optim.steps=100"
        )
    return rest


def parse_command(argv: list[str], commands: Iterable[str], default: str = "") -> list[str]:
    """`[program, command]`, of `commands`; it comes first on the line, flags after it.

    Where there is a flag --against, another config, it is that of --config unless given.
    """
    program, *rest = argv
    command = rest.pop(0) if rest and not rest[0].startswith("-") else default
    given = [arg for arg in rest if arg.startswith("--config=")]
    if given and "against" in flags.FLAGS and not any(a.startswith("--against=") for a in rest):
        rest = [given[-1].replace("--config=", "--against=", 1), *rest]
    parse_flags([program, *rest])
    if command not in commands:
        _fail(f"no command {command!r}; one of {', '.join(commands)}")
    return [program, command]


def required(holder: flags.FlagHolder[Any]) -> Any:
    """The value of a flag that the command cannot do without."""
    if holder.value is None:
        raise ConfigError([f"give it: {flags.FLAGS[holder.name].help}"], f"--{holder.name}")
    return holder.value


def read_config(holder: flags.FlagHolder[Any]) -> Config:
    """The validated config of a `DEFINE_config_file` flag."""
    known = ", ".join(str(path) for path in sorted(Path("configs").glob("*.py")))
    known = f"here are: {known}" if known else "run from the checkout, where configs/ is"
    flag = f"--{holder.name}"
    if holder.value is None:
        raise ConfigError([f"give one with {flag}=FILE; {known}"], flag)
    source = str(config_source(holder))
    try:
        values = holder.value.to_dict()
    except OSError:  # ml_collections keeps a failure to load until the first look
        raise ConfigError([f"no such file as {source}; {known}"], flag) from None
    except AttributeError:
        raise ConfigError([f"get_config() of {source} gives no config; {known}"], flag) from None
    config = from_config_dict(values, source)
    validate(config, source)
    return config


def config_source(holder: flags.FlagHolder[Any]) -> Path:
    return Path(config_flags.get_config_filename(flags.FLAGS[holder.name]))


@contextmanager
def report_errors() -> Iterator[None]:
    """Prints a ConfigError, or that Ctrl-C came, and exits; other errors keep their traceback.

    Ends quietly when whoever reads the output has what it wants, as `head` does.
    """
    try:
        with _ctrl_c_is_heard():
            yield
        sys.stdout.flush()
    except BrokenPipeError:
        forget_reader()
    except ConfigError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


@contextmanager
def _ctrl_c_is_heard() -> Iterator[None]:
    """It raises KeyboardInterrupt, and once more where Python would print that and go on.

    So it does in callbacks of the garbage collector, of which JAX has one, and of weak references;
    they run often while a program is traced.
    """
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    hook = sys.unraisablehook

    def unraisable(lost: Any) -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            hook(lost)

    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGINT, handler)


def write_page(path: str, text: str) -> None:
    """The file of --html."""
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        problem = Problem("html", path, f"cannot be written: {error.strerror}", "name a file")
        raise ConfigError([problem], "flags") from None


def answer(code: int, record: Any, shown: Iterable[RenderableType], *, as_json: bool) -> None:
    """Prints one or the other, and exits."""
    show(record, shown, as_json=as_json)
    sys.stdout.flush()
    sys.exit(code)


def show(record: Any, shown: Iterable[RenderableType], *, as_json: bool) -> None:
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


def _config_argument(argv: list[str]) -> str:
    return next((arg.split("=", 1)[1] for arg in argv if arg.startswith("--config=")), "flags")


def _one_line(error: Exception) -> str:
    """The message of an error of absl or ml_collections, which may quote it or add a traceback."""
    text = str(error.args[0] if error.args else error)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1].replace("\\n", "\n").replace("\\'", "'")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if "Traceback" in text else "; ".join(lines)


def _fail(message: str) -> Any:
    print(message, file=sys.stderr)
    sys.exit(EXIT_CONFIG)
