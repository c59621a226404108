"""The workdir of a run, and `run.json` in it: what was asked for, by which code, on what data.

`run.json` holds the `config` and the `starts`, and once a run has begun its `tokenizer` and `data`,
one entry per token set. Imported, grown and averaged weights bring a `tokenizer` and a `source`.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from gpt_pjit.config import FIXED_BY_WEIGHTS, FREE_ON_RESUME, Config, differences, from_config_dict
from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.core.runtime.folders import file_errors, read_json, write_whole
from gpt_pjit.core.runtime.hosts import wait_for_all

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "gpt_pjit")


def open_workdir(workdir: Path, config: Config) -> None:
    """Creates the workdir, or checks that a run of this config can start or resume there.

    Raises ConfigError with every field that differs from the run there. Fields of `FREE_ON_RESUME`
    may differ: they do not change what is computed. If no run has begun, any config is accepted
    that fits the imported or grown weights in the workdir, if there are any.
    """
    path = workdir / "run.json"
    with file_errors(f"the workdir {workdir} cannot be used", "--workdir"):
        if path.exists():
            old, record = read_run(workdir)
            changed = differences(old, config)
            if not has_begun(record):
                changed = _fixed_by_weights(changed, old) if "source" in record else {}
            _check_unchanged(changed, workdir, old)
        elif workdir.exists() and not workdir.is_dir():
            raise ConfigError([f"{workdir} is a file; choose a folder"], "--workdir")
        elif workdir.exists() and any(workdir.iterdir()):
            remedy = "choose an empty or new folder"
            raise ConfigError(
                [f"{workdir} is not empty and has no run.json; {remedy}"], "--workdir"
            )
        wait_for_all("workdir checked")
        if jax.process_index() == 0 and not path.exists():
            workdir.mkdir(parents=True, exist_ok=True)
            write_record(path, {"config": dataclasses.asdict(config), "starts": []})
    wait_for_all("workdir open")


def record_start(
    workdir: Path,
    config: Config,
    data: list[dict[str, Any]],
    tokenizer: tuple[str | None, bytes],
) -> None:
    """Records a start with its config and data; ConfigError if the run had other data before.

    `data` has one entry per set; its path may change. The tokenizer's file (its name, if it has
    one, and content) is copied: whoever reads the checkpoints needs it. Imported or grown weights
    bring a tokenizer but no data: any data of that tokenizer is accepted.
    """
    check_same_data(workdir, data)
    _, record = read_run(workdir)
    wait_for_all("data checked")
    if jax.process_index() != 0:
        return
    name, content = tokenizer
    if name and not has_begun(record):
        with file_errors(f"{workdir / name} cannot be written", "--workdir"):
            (workdir / name).write_bytes(content)
    used = {"tokenizer": tokenizer_record(data[0]), "data": data} if not has_begun(record) else {}
    starts = [*record["starts"], this_start()]
    now = {"config": dataclasses.asdict(config), "starts": starts, **used}
    write_record(workdir / "run.json", record | now)


def has_begun(record: dict[str, Any]) -> bool:
    """Whether an earlier start has opened its data, which fixes config and data for later ones."""
    return "data" in record


def tokenizer_record(identity: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer that weights need, from the identity of a token set."""
    return {
        "sha256": identity["tokenizer"],
        "vocab_size": identity["vocab_size"],
        "path": identity["path"],
    }


def read_run(workdir: Path) -> tuple[Config, dict[str, Any]]:
    """The config of the run in `workdir`, and its `run.json`; ConfigError if there is none."""
    path = workdir / "run.json"
    if not path.is_file():
        remedy = "give the --workdir of a run, or one step of it, WORKDIR/checkpoints/STEP"
        what = "has no run.json, so it is not a run" if workdir.is_dir() else "is not a folder"
        raise ConfigError([f"{workdir} {what}; {remedy}"], "checkpoint")
    record = read_json(path)
    try:
        config, _ = record["config"], record["starts"]
        _update_record(record)
    except (KeyError, TypeError, IndexError) as error:
        problem = f"{path} is damaged ({type(error).__name__}: {error}); restore it from a copy"
        raise ConfigError([problem], "workdir") from None
    return from_config_dict(config, str(path)), record


def _update_record(record: dict[str, Any]) -> None:
    """Older records keep the tokenizer in `data`, whose hash is None if no run has begun."""
    if "data" in record and "tokenizer" not in record:
        record["tokenizer"] = tokenizer_record(record["data"][0])
        if record["data"][0]["sha256"] is None:
            del record["data"]


def check_same_data(workdir: Path, now: list[dict[str, Any]]) -> None:
    """Raises ConfigError unless the sets `now` are the run's; before a run has begun, unless they
    have the tokenizer of its weights.
    """
    config, record = read_run(workdir)
    problems = []
    if has_begun(record):
        was, remedy = record["data"], f"use the run's data, or {new_run_from(workdir, config)}"
        problems = [
            f"{name} of {new['path']} is {new[name]}, but the run had {old[name]} of {old['path']}"
            for old, new in zip(was, now, strict=False)
            for name in ("tokenizer", "vocab_size", "sha256")
            if old[name] != new[name]
        ]
        if len(was) != len(now):
            problems.append(f"there are {len(now)} sets, but the run had {len(was)}")
    elif "tokenizer" in record:
        own, remedy = record["tokenizer"], "use data of that tokenizer, or another --workdir"
        problems = [
            f"tokenizer of {new['path']} is {new['tokenizer']}, but the weights from "
            f"{own['path']} have {own['sha256']}"
            for new in now
            if new["tokenizer"] != own["sha256"]
        ]
    if problems:
        problems[-1] += f"; {remedy}"
        raise ConfigError(problems, f"data of the run in {workdir}")


def new_run_from(workdir: Path, config: Config) -> str:
    """How to continue from the weights of `workdir` with another config."""
    layers = config.model.n_layers
    copy = f"gpt_pjit checkpoint grow {shlex.quote(str(workdir))} --layers={layers} --out=NEW"
    return f"start a new run from its weights: {copy}, then train with --workdir=NEW"


def _fixed_by_weights(changed: dict[str, Any], old: Config) -> dict[str, Any]:
    length = ("data.sequence_length",) if old.model.positions == "learned" else ()
    return {name: changed[name] for name in (*FIXED_BY_WEIGHTS, *length) if name in changed}


def _check_unchanged(changed: dict[str, tuple[Any, Any]], workdir: Path, old: Config) -> None:
    changed = {n: values for n, values in changed.items() if not n.startswith(FREE_ON_RESUME)}
    remedy = "keep that value, or use another --workdir"
    if not _fixed_by_weights(changed, old):
        remedy = f"keep that value, or {new_run_from(workdir, old)}"
    problems = [
        Problem(name, now, f"the run in {workdir} has {was!r}", remedy)
        for name, (was, now) in changed.items()
    ]
    if problems:
        raise ConfigError(problems, "config")


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Replaces a `run.json` in one step."""
    write_whole(path, json.dumps(record, indent=2) + "\n")


def this_start() -> dict[str, Any]:
    """The time, command, commit, packages and devices of this start."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([sys.executable, *sys.orig_argv[1:]]),
        "git": _git_state(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "processes": jax.process_count(),
        "devices": [jax.device_count(), jax.devices()[0].device_kind],
    }


def _git_state() -> dict[str, Any] | None:
    """The commit of this source tree and whether it was clean; None outside a git checkout."""

    def git(*arguments: str) -> str:
        command = ("git", "-C", str(Path(__file__).parent), *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "clean": not git("status", "--porcelain")}
    except (OSError, subprocess.CalledProcessError):
        return None
