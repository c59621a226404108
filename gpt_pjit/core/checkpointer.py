"""Saving and restoring a training state with Orbax, asynchronously, onto any mesh.

A step is saved with the fingerprint of each array, and counts only if the same is read again. What
cannot be read, or differs, is set aside, and the step before it is taken. Nothing is deleted but
the oldest steps, once a newer one is whole.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.options import AsyncOptions

from gpt_pjit.core.console import warn
from gpt_pjit.core.errors import ConfigError, FaultError, HostFailedError, IntegrityError
from gpt_pjit.core.files import (
    LARGEST_JSON,
    is_remote,
    read_regular,
    remove_folder,
    write_probe,
)
from gpt_pjit.core.fingerprint import fingerprints
from gpt_pjit.core.orbax_paths import COMMIT, orbax_folder
from gpt_pjit.core.runtime import all_or_none, everyone, from_process_0
from gpt_pjit.core.sharding import paths_and_leaves
from gpt_pjit.core.step_files import check_arrays, check_files

T = TypeVar("T")

ITEM = "default"  # the name that Orbax gives a checkpoint of one item
MANIFEST = f"{ITEM}/manifest.ocdbt"  # lists the files with the data
METADATA = "_CHECKPOINT_METADATA"
STEP = re.compile("0|[1-9][0-9]{0,9}")  # the name of its folder; other digits spell no other step
DRAFT = ".orbax-checkpoint-tmp"  # ends the name of a local step that is being written or removed
PARTS = (METADATA, f"{ITEM}/_METADATA", MANIFEST)


class Checkpointer:
    """Checkpoints of one run under `directory`, the newest `keep` of them (None: all)."""

    def __init__(
        self,
        directory: Path,
        keep: int | None,
        on_saved: Callable[[int], None] = lambda step: None,
    ):
        self.directory = directory
        self.last: int | None = None  # the step that was saved or restored last
        self._keep = keep
        self._unchecked: int | None = None  # the step that is being written
        self._on_saved = on_saved  # called with each step once it is written
        self._complete = threading.Event()  # on process 0: all of it is written, if not yet renamed
        # Not through ocp.CheckpointManager: there a host whose write fails waits for the others.
        self._writer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(),
            async_options=AsyncOptions(post_finalization_callback=self._complete.set),
        )
        self._pruning = threading.Thread()

    def restore_newest(self, target: Any) -> tuple[int, Any] | None:
        """The newest whole step, and its state as `target` describes it; None if none was saved.

        Sets damaged steps aside; raises IntegrityError if none is whole.
        """
        if jax.process_index() == 0:
            for leftover in unfinished(self.directory):  # of a killed process
                remove_folder(leftover)
        read = partial(restore, self.directory, target=target)
        found = newest_whole(self.directory, read, set_aside=True)
        self.last = found[0] if found else None
        if self.last and not has_fingerprints(self.directory, self.last):
            warn(f"step {self.last} has no fingerprints: damage to its arrays would not be found")
        return found

    def save(self, step: int, state: Any) -> None:
        """Copies the state off the devices and returns; the write continues in the background.

        Raises IntegrityError, and saves nothing, if the state holds NaN or infinity, or if devices
        that should hold the same differ.
        """
        self.wait()
        if self._pruning.is_alive():
            self._pruning.join()
        _write(self._writer, self.directory, step, state)
        self.last = self._unchecked = step

    def poll(self) -> None:
        """Raises FaultError if this host's part of the write under way has failed; hardly waits."""
        if self._unchecked is not None:
            with one_sentence(self._was_not_saved(self._unchecked), FaultError):
                self._writer.check_for_errors()
        if self._complete.is_set():
            self.wait()

    def wait(self) -> None:
        """Waits for the write under way; raises FaultError if it failed or is incomplete."""
        step, self._unchecked = self._unchecked, None
        if step is None:
            return
        with one_sentence(self._was_not_saved(step), FaultError):
            self._writer.wait_until_finished()
            _check_written(self.directory, step)
        self._complete.clear()
        self._on_saved(step)
        if jax.process_index() == 0 and self._keep is not None:
            old = saved_steps(self.directory)[: -self._keep]
            self._pruning = threading.Thread(target=_remove, args=(self.directory, old))
            self._pruning.start()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._writer.close()
            if self._pruning.is_alive():
                self._pruning.join()

    def _was_not_saved(self, step: int) -> str:
        return f"step {step} of {self.directory.parent} was not saved"


def write_state(directory: Path, step: int, state: Any) -> None:
    """Writes a state, or a part of one, and waits; unlike `Checkpointer`, it copies no array."""
    with closing(ocp.Checkpointer(ocp.CompositeCheckpointHandler())) as writer:
        _write(writer, directory, step, state)
    with one_sentence(f"step {step} of {directory.parent} cannot be saved", FaultError):
        _check_written(directory, step)


def _write(writer: ocp.Checkpointer, directory: Path, step: int, state: Any) -> None:
    found, workdir = fingerprints(state), directory.parent
    _check_sound(found, step, workdir)
    cannot_be_saved = f"step {step} of {workdir} cannot be saved"
    # Orbax would wait for a host that cannot write, and so would all others.
    with all_or_none(), one_sentence(cannot_be_saved, FaultError):
        if not is_remote(workdir):
            directory.mkdir(parents=True, exist_ok=True)
            write_probe(workdir, jax.process_index())
    with one_sentence(cannot_be_saved, FaultError):
        writer.save(
            orbax_folder(directory) / str(step),
            args=ocp.args.Composite(**{ITEM: ocp.args.StandardSave(state)}),
            custom_metadata={"step": step, "fingerprints": found.numbers},
        )


def saved_steps(directory: Path) -> list[int]:
    """The steps under `directory` whose writing was finished, in ascending order."""
    return sorted(int(folder.name) for folder in _steps(directory) if _is_final(folder))


def unfinished(directory: Path) -> list[Path]:
    """The folders under `directory` of steps that are being written, or were when a run died."""
    drafts = directory.glob(f"*{DRAFT}*")
    return [*drafts, *(folder for folder in _steps(directory) if not _is_final(folder))]


def _remove(directory: Path, steps: list[int]) -> None:
    """If killed meanwhile, the rest is unfinished, and goes at the next start."""
    for folder in (directory / str(step) for step in steps):
        if is_remote(folder):
            (folder / COMMIT).unlink()
        else:
            folder = folder.rename(folder.with_name(f"{folder.name}{DRAFT}"))
        remove_folder(folder)


def _steps(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return [path for path in directory.iterdir() if STEP.fullmatch(path.name) and path.is_dir()]


def _is_final(folder: Path) -> bool:
    """Whether the writing of a step was finished: locally, Orbax renames it then."""
    return not is_remote(folder) or (folder / COMMIT).exists()


def missing_parts(directory: Path, step: int) -> list[str]:
    """The files that `step` should have but has not."""
    return [part for part in PARTS if not (directory / str(step) / part).exists()]


def _check_written(directory: Path, step: int) -> None:
    if jax.process_index() == 0 and (missing := missing_parts(directory, step)):
        raise FileNotFoundError(f"it lacks {missing[0]}")


def require_parts(directory: Path, step: int) -> None:
    """Raises unless the files of `step` are there, and are files: reading a pipe never ends."""
    if missing := missing_parts(directory, step):
        raise LookupError(f"it lacks {', '.join(missing)}")
    try:
        check_files(directory / str(step))
    except ConfigError as error:
        raise ValueError(str(error.problems[0])) from None


def newest_whole(
    directory: Path, read: Callable[[int], T], *, set_aside: bool = False
) -> tuple[int, T] | None:
    """The newest step that `read` can read, and what it returns; None if nothing was saved.

    Warns of newer steps, and with `set_aside` renames them, `STEP.damaged`. Raises IntegrityError
    if no step can be read. Process 0 lists the steps; a step counts if all processes can read it.
    """
    steps = from_process_0(saved_steps(directory) if jax.process_index() == 0 else None)
    problem = ""
    for step in reversed(steps):
        try:
            return step, read(step)
        except (IntegrityError, HostFailedError) as error:
            found = str(error.problems[0] if isinstance(error, IntegrityError) else error)
            problem = problem or found
            warn(f"{found}; trying the step before it")
        if set_aside and jax.process_index() == 0:
            _set_aside(directory, step)
        everyone(None)
    if steps:
        raise IntegrityError([f"{problem}; no step here is whole"], "checkpoint")
    return None


def newest_or_wanted(
    directory: Path, wanted: int | None, read: Callable[[int], T]
) -> tuple[int, T]:
    """The step and what `read` returns for it: `wanted`, or the newest that can be read."""
    workdir = directory.parent
    if wanted is None:
        found = newest_whole(directory, read)
        if found is None:
            problem = f"{workdir} holds no checkpoint yet; the first is saved after"
            raise ConfigError([f"{problem} checkpoint.every steps"], "checkpoint")
        return found
    steps = from_process_0(saved_steps(directory) if jax.process_index() == 0 else None)
    if wanted not in steps:
        held = ", ".join(map(str, steps)) or "none"
        raise ConfigError([f"{workdir} holds no step {wanted}; it holds {held}"], "checkpoint")
    try:
        return wanted, read(wanted)
    except IntegrityError as error:
        problem = f"{error.problems[0]}; {other_steps(directory, wanted)}"
        raise IntegrityError([problem], "checkpoint") from error


def _set_aside(directory: Path, step: int) -> None:
    name = directory / f"{step}.damaged"
    number = 2
    while name.exists():
        name, number = directory / f"{step}.damaged-{number}", number + 1
    (directory / str(step)).rename(name)


def other_steps(directory: Path, step: int) -> str:
    """The end of a message about a step that cannot be used."""
    others = [str(other) for other in saved_steps(directory) if other != step]
    return f"other steps here: {', '.join(others) or 'none'}"


def restore(directory: Path, step: int, target: Any) -> Any:
    """The state of `step` with the shapes, dtypes and shardings of `target`.

    Step 0, of imported or grown weights, has parameters only; the rest of `target` stays. Raises
    ConfigError if the step holds the state of another optimizer.
    """
    if step == 0:
        return target._replace(params=restore_params(directory, step, target.params))
    _check_optimizer(directory, step, target)
    state = read_part(directory, step, target)
    if int(state.step) != step:
        problem = f"step {step} of {directory.parent} holds the state of step {int(state.step)}"
        raise IntegrityError([problem], "checkpoint")
    return state


def _check_optimizer(directory: Path, step: int, target: Any) -> None:
    where = f"step {step} of {directory.parent}"
    with all_or_none(), one_sentence(f"{where} cannot be read", IntegrityError):
        require_parts(directory, step)
        saved = set(_about(directory, step).get("fingerprints", ()))  # older steps have none
        wanted = {path for path, _ in paths_and_leaves(target)}
        differ = sorted(saved ^ wanted)
        if saved and differ:
            folder = orbax_folder(directory) / str(step) / ITEM
            held = ocp.PyTreeCheckpointHandler().metadata(folder).tree
            if {path for path, _ in paths_and_leaves(held)} == wanted:
                raise ValueError(f"its fingerprints are of other arrays: {METADATA} is damaged")
            found = f"{where} {'holds' if differ[0] in saved else 'lacks'} {differ[0]}"
            problem = f"optim.rules: {found}, as another optimizer saved it; keep that run's rules"
            raise ConfigError([problem])


def restore_params(directory: Path, step: int, target: Any) -> Any:
    """The parameters of `step` as `target` describes them; the optimizer state is not read."""
    return read_part(directory, step, {"params": target})["params"]


def read_part(directory: Path, step: int, target: Any, restore_args: Any = None) -> Any:
    """The arrays of `step` that `target`, a state or a part of one, describes.

    Raises IntegrityError unless each is the one that was saved, with its shape and dtype.
    """
    restore_args = restore_args or ocp.checkpoint_utils.construct_restore_args(target)
    args = ocp.args.PyTreeRestore(item=target, restore_args=restore_args, partial_restore=True)
    folder = orbax_folder(directory) / str(step)
    cannot_be_read = f"step {step} of {directory.parent} cannot be read"
    with all_or_none(), one_sentence(cannot_be_read, IntegrityError):
        require_parts(directory, step)
        saved = _about(directory, step)
        check_arrays(directory / str(step), ITEM, target)
        # Not through ocp.Checkpointer: if one host fails, the others would wait for it for ever.
        read = ocp.PyTreeCheckpointHandler().restore(folder / ITEM, args=args)
    with one_sentence(cannot_be_read, IntegrityError):
        if saved:  # steps of older versions have none
            _check_same(saved, step, fingerprints(read).numbers)
    return read


def has_fingerprints(directory: Path, step: int) -> bool:
    """Whether damage to the arrays of `step` can be found; steps of older versions have none."""
    return bool(_about(directory, step))


def _about(directory: Path, step: int) -> dict[str, Any]:
    """What was saved beside the arrays: `step` and `fingerprints`."""
    content = json.loads(read_regular(directory / str(step) / METADATA, LARGEST_JSON))
    saved = content.get("custom_metadata") or {}
    if saved and not (type(saved["step"]) is int and isinstance(saved["fingerprints"], dict)):
        raise ValueError(f"its {METADATA} has neither a step nor fingerprints")
    return saved


def _check_same(saved: dict[str, Any], step: int, read: dict[str, int]) -> None:
    if saved["step"] != step:
        raise ValueError(f"it was saved as step {saved['step']}")
    changed = [path for path, number in read.items() if saved["fingerprints"].get(path) != number]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise ValueError(f"{changed[0]}{more} is not what was saved: the files are damaged")


def _check_sound(found: Any, step: int, workdir: Path) -> None:
    if found.torn:
        path, devices = next(iter(found.torn.items()))
        named = ", ".join(f"{device} (process {device.process_index})" for device in devices)
        problem = f"{path} on {named} differs from its replicas at step {step}"
        remedy = "the device or its memory is faulty; start again without it"
        raise IntegrityError([f"{problem}: nothing is saved; {remedy}"], str(workdir))
    if found.not_finite:
        path = found.not_finite[0]
        problem = f"{path} holds NaN or infinity at step {step}: nothing is saved"
        raise IntegrityError([f"{problem}; the checkpoints before it are kept"], str(workdir))


@contextmanager
def one_sentence(problem: str, kind: type[ConfigError]) -> Iterator[None]:
    """Any error of Orbax, which has no class for its own, as one of ours."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        reason = str(error).split("\n", 1)[0]
        if len(reason) > 300:  # TensorStore names every layer, and the cause last
            reason = f"{reason[:100]} ... {reason[-200:]}"
        raise kind([f"{problem}: {reason}"], "checkpoint") from error
