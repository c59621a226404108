"""Arguments for the processes that `plan` starts: one for each candidate or revision."""

from __future__ import annotations

from collections.abc import Sequence

# Flags of the command line that say what this process does with a plan.
OWN = (
    *("search", "json", "html", "microbatches", "remat", "layouts", "tensor", "revision"),
    *("against", "against_revision"),
)


def plain_arguments(given: Sequence[str]) -> list[str]:
    """Those that say what to plan: config, overrides, topology; each as --NAME=VALUE."""
    own = {f"--{name}" for name in OWN}
    options: list[str] = []
    for argument in given:
        if argument.startswith("-"):
            options.append(argument)
        elif options:  # `--topology v3-32`; what comes before any flag is the command
            options[-1] += f"={argument}"
    return [option for option in options if option.split("=")[0].split(".")[0] not in own]
