"""Settings compiled side by side, in processes of their own, and ranked by step time."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from gpt_pjit.config import Config, flatten, replaced
from gpt_pjit.core.cores import usable_cores
from gpt_pjit.core.errors import (
    EXIT_BROKEN,
    EXIT_CONFIG,
    EXIT_DONE,
    EXIT_INTERRUPTED,
    ConfigError,
    Problem,
)
from gpt_pjit.core.validation import validate
from gpt_pjit.partition import human_bytes, text_table
from gpt_pjit.plan.memory import Memory, memory_of
from gpt_pjit.plan.topology import Topology

PAUSE = 0.2  # seconds between two looks at the processes


@dataclass(frozen=True)
class Candidate:
    """Fields that differ from the config's, and what is known of its memory before a compile."""

    fields: Mapping[str, Any]
    memory: Memory

    @property
    def overrides(self) -> list[str]:
        return [f"--config.{name}={value}" for name, value in self.fields.items()]

    @property
    def text(self) -> str:
        return "\n".join(self.overrides) or "as the config is"


@dataclass(frozen=True)
class Row:
    """A candidate and its plan's record; None where its trees alone do not fit, or it failed."""

    candidate: Candidate
    plan: Mapping[str, Any] | None
    failure: str = ""

    @property
    def fits(self) -> bool:
        return bool(self.plan and self.plan["fits"])

    @property
    def step_seconds(self) -> float:
        cost = self.plan and self.plan["cost"]
        return cost["step_seconds"] if cost else float("inf")

    @property
    def binds(self) -> str:
        """What to change first: memory, links, or the scope that takes most of the time."""
        if self.failure:
            return self.failure
        if self.plan is None:
            return "memory: state, weights and gradients alone"
        if not self.plan["cost"]:
            return "memory: activations"
        cost = self.plan["cost"]
        if not self.plan["fits"]:
            return "memory: activations"
        if cost["collective_seconds"] > cost["compute_seconds"]:
            return "links between chips"
        if not cost["scopes"]:
            return "compute"
        scope, by = next(iter(cost["scopes"].items()))
        return f"compute: {scope}, {sum(by.values()) / cost['mcycles']:.0%}"

    def record(self) -> dict[str, Any]:
        return {
            "overrides": self.candidate.overrides,
            "fits": self.fits,
            "binds": self.binds,
            "plan": self.plan,
        }


def candidates(
    config: Config, topology: Topology, wanted: Mapping[str, Sequence[str] | None]
) -> list[Candidate]:
    """Every valid combination, those expected to fill the memory but to fit first.

    `wanted` lists values of a field; None means all that divide for `optim.microbatches`, and for
    other fields the value of the config. Raises ConfigError if no combination is valid.
    """
    now = flatten(config)
    choices = {
        name: [type(now[name])(value) for value in values or _default(name, config, topology)]
        for name, values in wanted.items()
    }
    found: list[Candidate] = []
    problems: list[Problem | str] = []
    for values in itertools.product(*choices.values()):
        fields = dict(zip(choices, values, strict=True))
        try:
            changed = replaced(config, fields)
            validate(changed)
            different = {name: new for name, new in fields.items() if new != now[name]}
            found.append(Candidate(different, memory_of(changed, topology, None)))
        except ConfigError as error:
            problems += error.problems
    if not found:
        raise ConfigError(list(dict.fromkeys(problems)), "the search")
    return sorted(found, key=_promise)


def _default(name: str, config: Config, topology: Topology) -> list[Any]:
    if name != "optim.microbatches":
        return [flatten(config)[name]]
    rows = config.data.batch_size * config.mesh.tensor // topology.devices or 1
    return [n for n in range(1, rows + 1) if rows % n == 0]


def _promise(candidate: Candidate) -> tuple[bool, float]:
    """Those whose estimate fits come first, the fullest first: a fast step keeps much."""
    memory = candidate.memory
    too_big = memory.peak > memory.capacity
    return too_big, memory.peak if too_big else -memory.peak


def search(
    tried: Sequence[Candidate], topology: Topology, arguments: Sequence[str]
) -> tuple[list[Row], int]:
    """The rows found, and EXIT_INTERRUPTED if Ctrl-C cut it short, else 0.

    Each candidate is planned by the command that a user would type, in a process of its own; what
    is compiled stays in the cache, so that the same search goes on where it stopped.
    """
    waiting = [c for c in tried if c.memory.trees <= topology.chip.usable_bytes]
    rows = [Row(c, None) for c in tried if c not in waiting]
    running: list[tuple[Candidate, subprocess.Popen[str]]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True))
    task = bar.add_task(f"compiling for {topology.name}", total=len(waiting))
    try:
        with bar:
            while waiting or running:
                while waiting and len(running) < usable_cores():
                    candidate = waiting.pop(0)
                    running.append((candidate, _start([*arguments, *candidate.overrides])))
                for pair in [pair for pair in running if pair[1].poll() is not None]:
                    running.remove(pair)
                    rows.append(_finished(*pair))
                    bar.advance(task)
                time.sleep(PAUSE)
    except KeyboardInterrupt:
        return rows, EXIT_INTERRUPTED
    finally:
        for _, process in running:
            process.send_signal(signal.SIGKILL)
            process.wait()
    return rows, EXIT_DONE


def _start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    # A session of its own: Ctrl-C reaches this process, which then decides.
    return subprocess.Popen(
        [sys.executable, "-m", "gpt_pjit.plan", *arguments, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _finished(candidate: Candidate, process: subprocess.Popen[str]) -> Row:
    out, errors = process.communicate()
    if process.returncode in (EXIT_DONE, EXIT_BROKEN) and out:
        return Row(candidate, json.loads(out))
    last = errors.strip().splitlines()[-1:] or [f"ended with {process.returncode}"]
    kind = "refused" if process.returncode == EXIT_CONFIG else "failed"
    return Row(candidate, None, f"{kind}: {last[0].strip()[:200]}")


def ranked(rows: Sequence[Row]) -> list[Row]:
    """By step time; what does not fit comes last."""
    return sorted(rows, key=lambda row: (not row.fits, row.step_seconds))


def search_tables(rows: Sequence[Row], topology: Topology) -> Iterator[RenderableType]:
    table = text_table(
        f"Settings on {topology.name}", ">step", ">MFU", ">peak", "fits", "binds", "overrides"
    )
    seen: dict[str, Row] = {}
    for row in rows:
        cost = row.plan and row.plan["cost"]
        program = row.plan["program"] if row.plan else None
        twin = seen.setdefault(program, row) if program else row
        peak = row.plan["memory"]["peak_bytes"] if row.plan else row.candidate.memory.trees
        table.add_row(
            f"{cost['step_seconds']:.3f} s" if cost else "",
            f"{cost['mfu']:.1%}" if cost else "",
            ("" if cost else "over ") + human_bytes(peak),
            Text("yes", "green") if row.fits else Text("no", "red"),
            row.binds if twin is row else "the same program as a row above",
            Text(row.candidate.text, no_wrap=True),
        )
    yield table
    if rows and rows[0].fits:
        yield f"fastest that fits, {rows[0].step_seconds:.3f} s a step:"
        yield "    " + rows[0].candidate.text.replace("\n", " ")
    else:
        yield "nothing fits; see what `python -m gpt_pjit.plan` says would help"
