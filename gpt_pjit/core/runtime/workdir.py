"""The workdir of a run, and `run.json` in it: what was asked for, by which code, on what data.

`run.json` holds the `config`, the `tokenizer`, and once a run has begun its `data`, one entry for
each token set, its `walks` through them and its `starts`. Imported, grown and averaged weights add
their `source`, and a run that began from a step of another adds `from`.
"""

import dataclasses
import fcntl
import os
import socket
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax

from gpt_pjit.config import Config, differences, from_record
from gpt_pjit.core.console import say, warn
from gpt_pjit.core.errors import EXIT_FAULT, ConfigError, IntegrityError
from gpt_pjit.core.files import (
    Lease,
    check_bucket,
    file_errors,
    in_use,
    is_remote,
    read_json,
    write_json,
    write_probe,
)
from gpt_pjit.core.runtime.changes import (
    Origin,
    as_record,
    check_fits,
    check_names,
    check_resumes,
    in_words,
    new_run_from,
    origin_of,
)
from gpt_pjit.core.runtime.provenance import this_start
from gpt_pjit.core.runtime.together import all_or_none, end_all
from gpt_pjit.core.validation import validate

Record = dict[str, Any]
COPY = "run.copy.json"  # of run.json, which may be damaged
# The types of the entries, which are there once something has written them.
FORM: Record = {
    "tokenizer": {"sha256": str, "vocab_size": int, "path": str},
    "data": [{"path": str, "tokenizer": str, "vocab_size": int, "sha256": str}],
    "saved": int,
    "finished": int,
    "from": {"workdir": str, "step": int},
    "walks": [
        {
            "step": int,
            "seed": int,
            "sequence_length": int,
            "batch_size": int,
            "stages": [{"step": int, "weights": [(int, float)]}],
            "sets": [{"sha256": str, "seed": int, "taken": int}],
        }
    ],
}


def open_workdir(
    workdir: Path, config: Config, asked: Origin | None = None, allowed: Collection[str] = ()
) -> Origin | None:
    """Creates the workdir, or checks that a run of this config can start or resume there.

    Returns the step of another run that it begins, or began, from: the one that is `asked` for.
    Raises ConfigError with every field that differs and is neither free nor `allowed`.
    """
    path, origin = workdir / "run.json", asked
    cannot_be_used = f"the workdir {workdir} cannot be used"
    if is_remote(workdir):
        # A barrier of its own: what a process writes to try is seen by others, and would be there.
        with all_or_none(), file_errors(cannot_be_used, "--workdir"):
            check_bucket(workdir, jax.process_index())
    with all_or_none(), file_errors(cannot_be_used, "--workdir"):
        check_names(allowed)
        bound = False  # by an earlier start, or by weights
        if path.exists():
            old, record = read_run(workdir)
            begun = has_begun(record)
            bound = begun or "source" in record
            origin = origin_of(workdir, record, asked, begun=begun)
            if bound:
                check_resumes(workdir, old, config, allowed, begun=begun)
        elif workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
            problem = f"{workdir} is neither a run nor an empty folder; choose a new one"
            raise ConfigError([problem], "--workdir")
        if origin and not bound:
            check_fits(origin, read_run(origin.workdir)[0], config)
    with all_or_none(), file_errors(cannot_be_used, "--workdir"):
        if jax.process_index() == 0 and not path.exists():
            workdir.mkdir(parents=True, exist_ok=True)
            _write_record(workdir, {"config": dataclasses.asdict(config), "starts": []})
    with all_or_none(), file_errors(cannot_be_used, "--workdir"):
        if not path.exists():
            unseen = f"process 0 has written {path}, which process {jax.process_index()} cannot see"
            raise ConfigError([f"{unseen}; choose a folder that all hosts share"], "--workdir")
        if not is_remote(workdir):
            write_probe(workdir, jax.process_index())
    return origin


def record_start(
    workdir: Path,
    config: Config,
    data: list[Record],
    tokenizer: tuple[str | None, bytes],
    step: int = 0,
    entries: Record | None = None,
) -> None:
    """Records a start at `step` with its config and data, and what it changes.

    `data` has one entry for each set; the path in it may change. The tokenizer's file (its name,
    if it has one, and content) is copied: whoever reads the checkpoints needs it. `entries` are
    further ones of `run.json`.
    """
    with all_or_none():
        old, record = read_run(workdir)
        changed = differences(old, config) if has_begun(record) else {}
    if changed:
        say(f"changed at step {step:,}: {in_words(changed)}")
    with all_or_none():
        if jax.process_index() != 0:
            return
        if not has_begun(record):
            file, content = tokenizer
            if file:
                (workdir / file).write_bytes(content)
            of_data = {name: data[0][name] for name in ("vocab_size", "path")}
            record |= {"tokenizer": {"sha256": data[0]["tokenizer"], **of_data}, "data": data}
        record |= (entries or {}) | {"config": dataclasses.asdict(config)}
        start = this_start() | {"step": step}
        record["starts"].append(start | ({"changes": as_record(changed)} if changed else {}))
        _write_record(workdir, record)


@contextmanager
def only_trainer(workdir: Path) -> Iterator[None]:
    """Holds the lock of the workdir. In a folder the kernel frees it when this process ends; in a
    bucket another process takes it over once it is no longer renewed.
    """
    owner = f"process {os.getpid()} on {socket.gethostname()}"

    def lost(other: str) -> None:
        line = f"{workdir} is now being trained by {other}: this run did not renew its lock in time"
        end_all(EXIT_FAULT, line)

    with ExitStack() as stack:
        with all_or_none(), file_errors(f"{workdir}/lock cannot be made", "--workdir"):
            if jax.process_index() == 0:
                lock = Lease(workdir, owner, lost) if is_remote(workdir) else _lock(workdir, owner)
                stack.enter_context(lock)
        yield


@contextmanager
def _lock(folder: Path, owner: str) -> Iterator[None]:
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise in_use(folder, lock.read().strip()) from None
        lock.truncate(0)
        print(owner, file=lock, flush=True)
        yield


def note(workdir: Path, **facts: int) -> None:
    """Records, from process 0, that a step was `saved`, so that a later start does not take an
    empty folder for a new run, or with how many steps the run has `finished`.
    """
    if jax.process_index() == 0:
        _, record = read_run(workdir)
        _write_record(workdir, record | facts)


def check_none_saved(workdir: Path) -> None:
    """Raises IntegrityError if the run has saved checkpoints, of which none is there any more."""
    with all_or_none():
        if jax.process_index() == 0 and (step := read_run(workdir)[1].get("saved")):
            problem = f"{workdir}/checkpoints is empty, but the run has saved step {step} there"
            remedy = "put it back from a copy, or start a new run in another --workdir"
            raise IntegrityError([f"{problem}; {remedy}"], "checkpoint")


def has_begun(record: Record) -> bool:
    """Whether some start has come as far as its data, which binds later ones to both."""
    return "data" in record


def read_run(workdir: Path) -> tuple[Config, Record]:
    """The config of the run in `workdir`, and its `run.json`; ConfigError if there is none."""
    path = workdir / "run.json"
    with file_errors(f"{path} cannot be read", "checkpoint"):
        is_there, is_folder = path.is_file(), workdir.is_dir()
    if not is_there:
        remedy = "give the --workdir of a run, or one step of it, WORKDIR/checkpoints/STEP"
        what = "has no run.json, so it is not a run" if is_folder else "is not a folder"
        raise ConfigError([f"{workdir} {what}; {remedy}"], "checkpoint")
    record = _read_record(path)
    config = from_record(record["config"], str(path))
    validate(config, str(path), with_data=False)
    return config, record


def _read_record(path: Path) -> Record:
    """The content of `run.json`, or of the copy beside it if that is damaged."""
    problem = f"{path} is damaged: its entries are not those of a run"
    for file in (path, path.with_name(COPY)):
        try:
            record = read_json(file)
        except ConfigError as error:
            problem = str(error.problems[0]) if file == path else problem
            continue
        if _is_record(record):
            if file != path:
                warn(f"{problem}; {COPY} beside it is used")
            return record
    raise IntegrityError([problem], "workdir")


def _is_record(record: Record) -> bool:
    """Whether all that we read of a `run.json` has the types that we write."""
    present = {name: form for name, form in FORM.items() if name in record}
    if not _fits(record, present | {"config": dict, "starts": [dict]}) or record.get("data") == []:
        return False
    if "walks" in record and [walk["step"] for walk in record["walks"][:1]] != [0]:
        return False
    source = record.get("source")
    while source is not None:  # of the weights that the weights were made of, and so on
        form: Record = {"kind": str, "from": str}
        averaged = isinstance(source, dict) and source.get("kind") == "average"
        if not _fits(source, form | ({"steps": [int]} if averaged else {})):
            return False
        source = source.get("source")
    return True


def _fits(value: Any, form: Any) -> bool:
    if isinstance(form, dict):
        entries = isinstance(value, dict) and form.keys() <= value.keys()
        return entries and all(_fits(value[name], inner) for name, inner in form.items())
    if isinstance(form, list):
        return isinstance(value, list) and all(_fits(inner, form[0]) for inner in value)
    return isinstance(value, form) and not isinstance(value, bool)


def _write_record(workdir: Path, record: Record) -> None:
    write_json(workdir / "run.json", record)
    write_json(workdir / COPY, record)


def check_same_data(workdir: Path, now: list[Record], origin: Origin | None = None) -> None:
    """Raises ConfigError unless the sets `now` are those of the run in `workdir`, or where none has
    begun, of the tokenizer of its weights, or of those of its `origin`.
    """
    _, record = read_run(workdir)
    if origin and not has_begun(record):
        theirs = read_run(origin.workdir)[1]
        record = {name: theirs[name] for name in ("tokenizer",) if name in theirs}
    if has_begun(record):
        before, names = record["data"], ["tokenizer", "vocab_size", "sha256"]
        owner, remedy = "the run", f"use the run's data, or {new_run_from(workdir)}"
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
