"""The workdir of a run, and `run.json` in it: what was asked for, by which code, on what."""

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
from gpt_pjit.core.runtime.folders import write_whole
from gpt_pjit.core.runtime.hosts import wait_for_all

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "gpt_pjit")


def open_workdir(workdir: Path, config: Config) -> None:
    """Creates the workdir or checks that it holds this config's run; records this start.

    Raises ConfigError, with every field that differs, where it holds another run; changes nothing
    then. Fields of `FREE_ON_RESUME` may differ: they do not change what is computed. Where the
    workdir holds weights that were imported or grown, and nothing has started from them, only
    what they fix must be the same. Where no start has come as far as its data, any config will do.
    """
    path = workdir / "run.json"
    record: dict[str, Any] = {"config": None, "starts": []}
    if path.exists():
        old, record = _read(path)
        changed = differences(old, config) if "data" in record else {}
        _check_unchanged(changed if record["starts"] else _of_weights(changed, old), workdir)
    elif workdir.exists() and not workdir.is_dir():
        raise ConfigError([f"{workdir} is a file; choose a folder with --workdir"], "workdir")
    elif workdir.exists() and any(workdir.iterdir()):
        remedy = "choose an empty or new folder with --workdir"
        raise ConfigError([f"{workdir} is not empty and holds no run.json; {remedy}"], "workdir")
    wait_for_all("workdir checked")
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        record["config"] = dataclasses.asdict(config)
        record["starts"].append(this_start())
        write_record(path, record)
    wait_for_all("workdir open")


def read_run(workdir: Path) -> tuple[Config, dict[str, Any]]:
    """The config of the run in `workdir`, and its `run.json`; ConfigError if there is none."""
    path = workdir / "run.json"
    if not path.is_file():
        remedy = "give the --workdir of a run, or one step of it, WORKDIR/checkpoints/STEP"
        what = "holds no run.json, so it is no run" if workdir.is_dir() else "is no folder"
        raise ConfigError([f"{workdir} {what}; {remedy}"], "checkpoint")
    return _read(path)


def _read(path: Path) -> tuple[Config, dict[str, Any]]:
    try:
        record = json.loads(path.read_text())
        config, _ = record["config"], record["starts"]
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{path} is damaged ({type(error).__name__}: {error}); restore it from a copy"
        raise ConfigError([problem], "workdir") from None
    return from_config_dict(config, str(path)), record


def check_data(
    workdir: Path, identity: list[dict[str, Any]], tokenizer: tuple[str | None, bytes]
) -> None:
    """Records what data the run has, or raises ConfigError if it had other data before.

    `identity` has one entry for each set; the path in it may change. The tokenizer's file (its
    name, if it has one, and content) is copied: whoever reads the checkpoints needs it. Weights
    that were imported or grown bring their tokenizer and no data: any of that tokenizer will do.
    """
    path = workdir / "run.json"
    record = json.loads(path.read_text())
    wait_for_all("data checked")
    was = record.get("data")
    if was is not None:
        check_same_data(was, identity, workdir)
    if (was is None or has_no_data(was)) and jax.process_index() == 0:
        name, content = tokenizer
        if name:
            (workdir / name).write_bytes(content)
        write_record(path, record | {"data": identity})


def check_same_data(was: list[dict[str, Any]], now: list[dict[str, Any]], workdir: Path) -> None:
    """Raises ConfigError where the sets `now` are not those, or of the tokenizer, of `workdir`."""
    names: tuple[str, ...] = ("tokenizer", "vocab_size", "sha256")
    if has_no_data(was):
        was, names = was * len(now), ("tokenizer",)
    problems = [
        f"{name} of {new['path']} is {new[name]}, the run had {old[name]} of {old['path']}"
        for old, new in zip(was, now, strict=False)
        for name in names
        if old[name] != new[name]
    ]
    if len(was) != len(now):
        problems.append(f"it is {len(now)} sets, the run had {len(was)}")
    if problems:
        problems[-1] += "; use the run's data, or another --workdir"
        raise ConfigError(problems, f"data of the run in {workdir}")


def has_no_data(identity: list[dict[str, Any]]) -> bool:
    """Whether it is that of weights from which no run has begun."""
    return identity[0]["sha256"] is None


def _of_weights(changed: dict[str, Any], old: Config) -> dict[str, Any]:
    length = ("data.sequence_length",) if old.model.positions == "learned" else ()
    return {name: changed[name] for name in (*FIXED_BY_WEIGHTS, *length) if name in changed}


def _check_unchanged(changed: dict[str, tuple[Any, Any]], workdir: Path) -> None:
    remedy = "use another --workdir, or the config of that run"
    problems = [
        Problem(name, now, f"the run in {workdir} has {was!r}", remedy)
        for name, (was, now) in changed.items()
        if not name.startswith(FREE_ON_RESUME)
    ]
    if problems:
        raise ConfigError(problems, "config")


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Replaces a `run.json` in one step."""
    write_whole(path, json.dumps(record, indent=2) + "\n")


def this_start() -> dict[str, Any]:
    """When, by which command and code, on what."""
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
