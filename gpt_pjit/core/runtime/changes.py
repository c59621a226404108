"""What a run may change where it resumes, or where it begins from a step of another run."""

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gpt_pjit.config import FIXED_BY_WEIGHTS, FREE_ON_RESUME, Config, differences, flatten
from gpt_pjit.core.console import say
from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.core.files import as_path

FLAG, FROM = "--allow_change", "--from"


class Origin(NamedTuple):
    """A step of another run, whose state a run begins with; None is its newest."""

    workdir: Path
    step: int | None

    def __str__(self) -> str:
        return str(self.workdir if self.step is None else self.workdir / f"checkpoints/{self.step}")


def check_resumes(
    workdir: Path, old: Config, config: Config, allowed: Collection[str], *, begun: bool
) -> None:
    """Raises ConfigError with every field that the run of config `old` in `workdir` cannot change.

    Those of `FREE_ON_RESUME` may, and those `allowed` by name, but none that weights fix. Where no
    run has begun, only weights bind.
    """
    changed = differences(old, config)
    fixed = _fixed(old) & changed.keys()
    named = [name for name in changed if not name.startswith(FREE_ON_RESUME)]
    bound = fixed | {name for name in named if begun and name not in allowed}
    flag = f"{FLAG}={','.join(named)}"
    remedy = f"keep that value, allow the change with {flag}, or {new_run_from(workdir)}"
    if fixed:
        remedy = "keep that value, or use another --workdir"
    _check_none(changed, bound, f"the run in {workdir}", remedy)


def check_names(allowed: Collection[str]) -> None:
    """Raises ConfigError unless all are fields of a config."""
    known = flatten(Config())
    for name in allowed:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            remedy = f"did you mean {close[0]}?" if close else "for example optim.steps"
            raise ConfigError([Problem(FLAG, name, "no such field of a config", remedy)], "flags")


def check_fits(origin: Origin, theirs: Config, config: Config) -> None:
    """Raises ConfigError with every field of the model that differs from that of `origin`."""
    _check_none(differences(theirs, config), _fixed(theirs), str(origin), "keep that value")


def _check_none(
    changed: Mapping[str, tuple[Any, Any]], bound: Collection[str], whose: str, remedy: str
) -> None:
    """Raises ConfigError with every field that has `changed` although it is `bound`."""
    if problems := [
        Problem(name, now, f"{whose} has {was!r}", remedy)
        for name, (was, now) in changed.items()
        if name in bound
    ]:
        raise ConfigError(problems, "config")


def origin_of(
    workdir: Path, record: Mapping[str, Any], asked: Origin | None, *, begun: bool
) -> Origin | None:
    """Where the run with this `run.json` begins: as recorded, or as `asked` if it has not begun.

    Raises ConfigError if another one is asked for.
    """
    if not begun and "source" not in record:
        return asked
    recorded = record.get("from")
    known = Origin(as_path(recorded["workdir"]), recorded["step"]) if recorded else None
    began = f"began from {known}" if known else f"began without {FROM}"
    names = (str(known), str(known.workdir)) if known else ()  # what --from may say
    if asked and str(asked._replace(workdir=asked.workdir.resolve())) not in names:
        problem = f"{FROM}={asked}: the run in {workdir} {began}; use another --workdir"
        raise ConfigError([problem], FROM)
    return known


def as_record(changed: Mapping[str, tuple[Any, Any]]) -> dict[str, dict[str, Any]]:
    """Differences as `run.json` has them."""
    return {name: {"from": was, "to": now} for name, (was, now) in changed.items()}


def in_words(changed: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{name} {was!r} -> {now!r}" for name, (was, now) in changed.items())


def entries_of(
    origin: Origin, step: int, changed: Mapping[str, tuple[Any, Any]], theirs: Mapping[str, Any]
) -> dict[str, Any]:
    """What the `run.json` of a run says of its origin, whose own is `theirs`; also said aloud."""
    what = f": {in_words(changed)}" if changed else ", config unchanged"
    say(f"starting from step {step:,} of {origin.workdir}{what}")
    began = {"workdir": str(origin.workdir.resolve()), "step": step}
    entries = {"from": began | {"differences": as_record(changed)}}
    return entries | {name: theirs[name] for name in ("source",) if name in theirs}


def new_run_from(workdir: Path) -> str:
    """How to train on from the state of `workdir` with another config."""
    return f"start a new run from it: {FROM}={workdir} --workdir=NEW"


def _fixed(config: Config) -> set[str]:
    length = {"data.sequence_length"} if config.model.positions == "learned" else set()
    return {*FIXED_BY_WEIGHTS, *length}
