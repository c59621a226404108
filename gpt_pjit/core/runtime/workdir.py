"""The workdir of a run, and `run.json` in it: what was asked for, by which code, on what data.

`run.json` holds the `config`, the `tokenizer`, and once a run has begun its `data`, one entry for
each token set, and its `starts`. Imported, grown and averaged weights add their `source`.
"""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import jax

from gpt_pjit.config import FIXED_BY_WEIGHTS, FREE_ON_RESUME, Config, differences, from_config_dict
from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.core.runtime.files import file_errors, read_json, write_json
from gpt_pjit.core.runtime.provenance import this_start
from gpt_pjit.core.runtime.together import all_or_none

Record = dict[str, Any]


def open_workdir(workdir: Path, config: Config) -> None:
    """Creates the workdir, or checks that a run of this config can start or resume there.

    Raises ConfigError with every field that differs. Those of `FREE_ON_RESUME` may: they do not
    change what is computed. Where no run has begun, any config that fits the weights will do.
    """
    path = workdir / "run.json"
    cannot_be_used = f"the workdir {workdir} cannot be used"
    with all_or_none(), file_errors(cannot_be_used, "--workdir"):
        if path.exists():
            _check_same_config(workdir, config)
        elif workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
            problem = f"{workdir} is neither a run nor an empty folder; choose a new one"
            raise ConfigError([problem], "--workdir")
    with all_or_none(), file_errors(cannot_be_used, "--workdir"):
        if jax.process_index() == 0 and not path.exists():
            workdir.mkdir(parents=True, exist_ok=True)
            write_json(path, {"config": dataclasses.asdict(config), "starts": []})
    with all_or_none():
        if not path.exists():
            problem = (
                f"process 0 has written {path}, which process {jax.process_index()} cannot see"
            )
            raise ConfigError([f"{problem}; choose a folder that all hosts share"], "--workdir")


def record_start(
    workdir: Path, config: Config, data: list[Record], tokenizer: tuple[str | None, bytes]
) -> None:
    """Records a start with its config and data; ConfigError if the run had other data before.

    `data` has one entry for each set; the path in it may change. The tokenizer's file (its name,
    if it has one, and content) is copied: whoever reads the checkpoints needs it.
    """
    with all_or_none():
        check_same_data(workdir, data)
        _, record = read_run(workdir)
    with all_or_none():
        if jax.process_index() != 0:
            return
        if not has_begun(record):
            file, content = tokenizer
            if file:
                (workdir / file).write_bytes(content)
            of_data = {name: data[0][name] for name in ("vocab_size", "path")}
            record |= {"tokenizer": {"sha256": data[0]["tokenizer"], **of_data}, "data": data}
        record["config"] = dataclasses.asdict(config)
        record["starts"].append(this_start())
        write_json(workdir / "run.json", record)


def has_begun(record: Record) -> bool:
    """Whether some start has come as far as its data, which binds later ones to both."""
    return "data" in record


def read_run(workdir: Path) -> tuple[Config, Record]:
    """The config of the run in `workdir`, and its `run.json`; ConfigError if there is none."""
    path = workdir / "run.json"
    if not path.is_file():
        remedy = "give the --workdir of a run, or one step of it, WORKDIR/checkpoints/STEP"
        what = "has no run.json, so it is not a run" if workdir.is_dir() else "is not a folder"
        raise ConfigError([f"{workdir} {what}; {remedy}"], "checkpoint")
    record = read_json(path)
    if not isinstance(record.get("config"), dict) or "starts" not in record:
        raise ConfigError([f"{path} is damaged; restore it from a copy"], "workdir")
    return from_config_dict(record["config"], str(path)), record


def check_same_data(workdir: Path, now: list[Record]) -> None:
    """Raises ConfigError unless the sets `now` are those of the run in `workdir`, or where none has
    begun, of the tokenizer of its weights.
    """
    config, record = read_run(workdir)
    if has_begun(record):
        before, names = record["data"], ["tokenizer", "vocab_size", "sha256"]
        owner, remedy = "the run", f"use the run's data, or {_new_run_from(workdir, config)}"
    elif "tokenizer" in record:
        own = record["tokenizer"]
        before, names = [own | {"tokenizer": own["sha256"]}] * len(now), ["tokenizer"]
        owner, remedy = "the model", "use data of that tokenizer, or another --workdir"
    else:
        return
    problems = [
        f"{name} of {new['path']} is {new[name]}, {owner} had {old[name]} of {old['path']}"
        for old, new in zip(before, now, strict=False)
        for name in names
        if old[name] != new[name]
    ]
    if len(before) != len(now):
        problems.append(f"there are {len(now)} sets, the run had {len(before)}")
    if problems:
        problems[-1] += f"; {remedy}"
        raise ConfigError(problems, f"data of the run in {workdir}")


def _new_run_from(workdir: Path, config: Config) -> str:
    """How to train on from the weights of `workdir` with another config."""
    layers = config.model.n_layers
    copy = f"gpt_pjit checkpoint grow {shlex.quote(str(workdir))} --layers={layers} --out=NEW"
    return f"start a new run from its weights: {copy}, then train with --workdir=NEW"


def _check_same_config(workdir: Path, config: Config) -> None:
    """Raises ConfigError with every field that a run in `workdir` cannot change."""
    old, record = read_run(workdir)
    changed = differences(old, config)
    length = {"data.sequence_length"} if old.model.positions == "learned" else set()
    fixed = {*FIXED_BY_WEIGHTS, *length} & changed.keys()
    if not has_begun(record):
        held = fixed if "source" in record else ()
        changed = {name: values for name, values in changed.items() if name in held}
    other = "use another --workdir" if fixed else _new_run_from(workdir, old)
    problems = [
        Problem(name, now, f"the run in {workdir} has {was!r}", f"keep that value, or {other}")
        for name, (was, now) in changed.items()
        if not name.startswith(FREE_ON_RESUME)
    ]
    if problems:
        raise ConfigError(problems, "config")
