"""Exit codes, and how mistakes in a user's input are reported."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

EXIT_DONE = 0
EXIT_BROKEN = 1  # a check failed: a broken promise, or a difference from a record
EXIT_FAULT = 1  # something outside the program failed, such as a disk: a retry may help
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: SIGTERM or SIGHUP, all is saved; start again
EXIT_STUCK = 76  # no progress, or a host that answers no more: start again
EXIT_INTEGRITY = 77  # damaged or diverged: do not retry, a person must look
EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h: do not retry, the input must change
EXIT_INTERRUPTED = 130  # Ctrl-C; a run says whether it saved

MOST_LISTED = 100  # problems in a message
LONGEST = 300  # characters of a value in a message


@dataclass(frozen=True)
class Problem:
    """One mistake: the `field` that holds `value`, the `constraint` it breaks, and a `remedy`."""

    field: str
    value: Any
    constraint: str
    remedy: str

    def __str__(self) -> str:
        value = repr(self.value)
        value = value if len(value) <= LONGEST else f"{value[:LONGEST]}..."
        return f"{self.field}={value}: {self.constraint}; {self.remedy}"


class ConfigError(ValueError):
    """All problems of one input at once. Command lines print it and exit with its `code`."""

    code = EXIT_CONFIG

    def __init__(self, problems: Sequence[Problem | str], source: str = "config"):
        self.problems = tuple(problems)
        count = f"{len(self.problems)} problem" + ("s" if len(self.problems) != 1 else "")
        lines = [f"  {str(problem)[: 10 * LONGEST]}" for problem in self.problems[:MOST_LISTED]]
        if more := len(self.problems) - len(lines):
            lines.append(f"  and {more:,} more")
        super().__init__(f"{source} has {count}:\n" + "\n".join(lines))


class IntegrityError(ConfigError):
    """Stored data that is damaged, or a run that has diverged."""

    code = EXIT_INTEGRITY


class FaultError(ConfigError):
    """The world outside failed, such as a full disk: the same command may succeed later."""

    code = EXIT_FAULT


class HostFailedError(Exception):
    """Another process failed first; `code` is the exit code that all of them end with."""

    def __init__(self, line: str, code: int):
        super().__init__(line)
        self.code = code


def nearest_multiples(value: int, factor: int) -> str:
    """The multiples of `factor` around `value`, for a remedy: "96 or 128"."""
    below = value // factor * factor
    return f"{below} or {below + factor}" if below else f"{factor}"
