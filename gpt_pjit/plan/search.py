"""Settings compiled side by side, each in a process of its own, and ranked by step time."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from gpt_pjit.config import Config, flatten, replaced
from gpt_pjit.core.console import Progress
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
from gpt_pjit.pages import Block, Cell, Note, Record, Table, human_bytes
from gpt_pjit.plan.memory import Memory, memory_of
from gpt_pjit.plan.topology import Topology


@dataclass(frozen=True)
class Candidate:
    """Fields that differ from the config's, and the memory that is estimated before a compile."""

    fields: Mapping[str, Any]
    memory: Memory

    @property
    def overrides(self) -> list[str]:
        return [f"--config.{name}={value}" for name, value in self.fields.items()]


def candidates(
    config: Config, topology: Topology, wanted: Mapping[str, Sequence[str] | None]
) -> list[Candidate]:
    """Every valid combination; those expected to fit come first, the fullest of them first.

    `wanted` lists values by field; None stands for all divisors for `optim.microbatches`, and for
    the config's own value elsewhere. Raises ConfigError if no combination is valid.
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
    return sorted(found, key=_by_expected_memory)


def _default(name: str, config: Config, topology: Topology) -> list[Any]:
    if name != "optim.microbatches":
        return [flatten(config)[name]]
    rows = config.data.batch_size * config.mesh.tensor // topology.devices or 1
    return [n for n in range(1, rows + 1) if rows % n == 0]


def _by_expected_memory(candidate: Candidate) -> tuple[bool, float]:
    """Fuller ones first, where they fit: what is kept in memory is not computed again."""
    memory = candidate.memory
    too_big = memory.peak > memory.capacity
    return too_big, memory.peak if too_big else -memory.peak


def search(
    tried: Sequence[Candidate], topology: Topology, arguments: Sequence[str]
) -> tuple[list[Record], int]:
    """A record for each candidate, the fastest that fits first, and EXIT_INTERRUPTED after Ctrl-C.

    Each is planned by the command that a user would type; what is compiled stays in the cache, so
    the same search continues where it stopped.
    """
    waiting = [c for c in tried if c.memory.trees <= topology.chip.usable_bytes]
    found = [
        _record(c, None, "memory: state, weights and gradients alone")
        for c in tried
        if c not in waiting
    ]
    children: list[subprocess.Popen[str]] = []
    pool = ThreadPoolExecutor(usable_cores())
    runs = [pool.submit(_run, c, [*arguments, *c.overrides], children) for c in waiting]
    code = EXIT_DONE
    try:
        with Progress(f"compiling for {topology.name}", len(runs)) as progress:
            for done, run in enumerate(as_completed(runs), 1):
                found.append(run.result())
                progress.update(done)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in children:
            child.kill()
        pool.shutdown()
    return sorted(found, key=lambda one: (not one["fits"], _seconds(one))), code


def _run(
    candidate: Candidate, arguments: Sequence[str], children: list[subprocess.Popen[str]]
) -> Record:
    # A session of its own: Ctrl-C reaches only this process, which then decides.
    with subprocess.Popen(
        [sys.executable, "-m", "gpt_pjit.plan", *arguments, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        children.append(child)
        out, errors = child.communicate()
    if child.returncode in (EXIT_DONE, EXIT_BROKEN) and out:
        plan = json.loads(out)
        return _record(candidate, plan, _limit(plan))
    last = errors.strip().splitlines()[-1:] or [f"ended with {child.returncode}"]
    kind = "refused" if child.returncode == EXIT_CONFIG else "failed"
    return _record(candidate, None, f"{kind}: {last[0].strip()[:200]}")


def _record(candidate: Candidate, plan: Record | None, limit: str) -> Record:
    return {
        "overrides": candidate.overrides,
        "fits": bool(plan and plan["fits"]),
        "limit": limit,
        "trees_bytes": candidate.memory.trees,
        "plan": plan,
    }


def _limit(plan: Record) -> str:
    """What to change first: memory, links, or the scope that takes most of the time."""
    cost = plan["cost"]
    if not cost or not plan["fits"]:
        return "memory: activations"
    if cost["collective_seconds"] > cost["compute_seconds"]:
        return "links between chips"
    if not cost["scopes"]:
        return "compute"
    scope, by = next(iter(cost["scopes"].items()))
    return f"compute: {scope}, {sum(by.values()) / cost['mcycles']:.0%}"


def _seconds(found: Record) -> float:
    cost = found["plan"] and found["plan"]["cost"]
    return cost["step_seconds"] if cost else math.inf


def search_blocks(found: Sequence[Record], topology: Topology) -> Iterator[Block]:
    programs: dict[str, Record] = {}
    rows = []
    for one in found:
        plan = one["plan"] or {"cost": None, "program": None}
        cost, program = plan["cost"], plan["program"]
        is_twin = program and programs.setdefault(program, one) is not one
        peak = human_bytes(plan["memory"]["peak_bytes"] if one["plan"] else one["trees_bytes"])
        rows.append(
            (
                f"{cost['step_seconds']:.3f} s" if cost else "",
                f"{cost['mfu']:.1%}" if cost else "",
                peak if cost else f"over {peak}",
                Cell("yes", style="good") if one["fits"] else Cell("no", style="bad"),
                "the same program as a row above" if is_twin else one["limit"],
                "\n".join(one["overrides"]) or "as the config is",
            )
        )
    columns = (">step", ">MFU", ">peak", "fits", "limited by", "overrides")
    yield Table(f"Settings on {topology.name}", columns, rows)
    if found and found[0]["fits"]:
        yield Note(f"fastest that fits, {_seconds(found[0]):.3f} s a step:")
        yield Note("    " + (" ".join(found[0]["overrides"]) or "as the config is"))
    else:
        yield Note("nothing fits; `gpt_pjit plan` says what would help")
