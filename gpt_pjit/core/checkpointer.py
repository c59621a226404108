"""Saving and restoring a training state with Orbax, asynchronously, onto any mesh."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from gpt_pjit.core.console import warn
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.sharding import paths_and_leaves

ITEM = "default"  # the name that Orbax gives a checkpoint of one item
MANIFEST = f"{ITEM}/manifest.ocdbt"  # lists the files with the data
PARTS = ("_CHECKPOINT_METADATA", f"{ITEM}/_METADATA", MANIFEST)


class _Folder(type(epath.Path("/"))):  # type: ignore[misc]
    """A local folder for Orbax, whose own path class, of etils, reads the folder's name as a
    pattern, so that nothing is found in `run[1]`, and takes /s3/run for s3://run.
    """

    _uri_scheme = None

    def glob(self, pattern: str) -> Iterator[Any]:
        return (self / match for match in glob.glob(pattern, root_dir=self))


class Checkpointer:
    """Checkpoints of one run under `directory`, the newest `keep` of them (None: all)."""

    def __init__(self, directory: Path, keep: int | None, *, background: bool = True):
        self.directory = directory
        self._unchecked: int | None = None  # the step that is being written
        self._set_damaged_steps_aside()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, enable_async_checkpointing=background
        )
        self._manager = ocp.CheckpointManager(_Folder(directory.resolve()), options=options)

    def _set_damaged_steps_aside(self) -> None:
        """Renames those after the step that a run resumes from: Orbax saves none before them."""
        newest = self.latest_step()
        if newest is not None and jax.process_index() == 0:
            for step in saved_steps(self.directory):
                if step > newest:
                    (self.directory / str(step)).rename(self.directory / f"{step}.damaged")
        multihost_utils.sync_global_devices("damaged steps set aside")

    def latest_step(self) -> int | None:
        return newest_step(self.directory)

    def save(self, step: int, state: Any) -> None:
        """Copies the state off the devices and returns; the write continues in the background."""
        self.wait()
        with _one_sentence(f"step {step} of {self.directory.parent} cannot be saved"):
            saved = self._manager.save(step, args=ocp.args.StandardSave(state))
        assert saved, f"Orbax skipped step {step}"
        self._unchecked = step

    def wait(self) -> None:
        """Waits for the write under way; raises ConfigError if it failed or is incomplete."""
        step, self._unchecked = self._unchecked, None
        with _one_sentence(f"step {step} of {self.directory.parent} was not saved"):
            self._manager.wait_until_finished()
            missing = missing_parts(self.directory, step) if step is not None else []
            if missing and jax.process_index() == 0:
                raise FileNotFoundError(f"it lacks {missing[0]}")

    def restore(self, step: int, target: Any) -> Any:
        """The state of `step` with the shapes, dtypes and shardings of `target`."""
        return read_part(self.directory, step, target)

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._manager.close()


def saved_steps(directory: Path) -> list[int]:
    """The steps under `directory` whose writing was finished, in ascending order."""
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal() and p.is_dir())


def missing_parts(directory: Path, step: int) -> list[str]:
    """The files that `step` should have but has not; damage inside a file does not show here."""
    return [part for part in PARTS if not (directory / str(step) / part).exists()]


def newest_step(directory: Path) -> int | None:
    """The newest step that has all its parts, or None if nothing was saved.

    Warns of newer steps that lack a part; raises ConfigError if every step does.
    """
    damaged: list[str] = []
    for step in reversed(saved_steps(directory)):
        missing = ", ".join(missing_parts(directory, step))
        if not missing:
            for problem in damaged:
                warn(f"{problem}; using step {step}")
            return step
        damaged.append(f"step {step} of {directory.parent} is damaged: it lacks {missing}")
    if damaged:
        raise ConfigError([f"{damaged[0]}; no step here is complete"], "checkpoint")
    return None


def other_steps(directory: Path, step: int) -> str:
    """The end of a message about a step that cannot be used."""
    others = [str(other) for other in saved_steps(directory) if other != step]
    return f"other steps here: {', '.join(others) or 'none'}"


def restore_params(directory: Path, step: int, target: Any) -> Any:
    """The parameters of `step` as `target` describes them; the optimizer state is not read."""
    return read_part(directory, step, {"params": target})["params"]


def read_part(directory: Path, step: int, target: Any, restore_args: Any = None) -> Any:
    """The arrays of `step` that `target`, a state or a part of one, describes: all, or an error."""
    restore_args = restore_args or ocp.checkpoint_utils.construct_restore_args(target)
    args = ocp.args.PyTreeRestore(item=target, restore_args=restore_args, partial_restore=True)
    problem = f"step {step} of {directory.parent} cannot be read"
    with _one_sentence(problem, f"; {other_steps(directory, step)}"):
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            read = reader.restore(_Folder(directory.resolve()) / str(step) / ITEM, args=args)
        for path, leaf in paths_and_leaves(read):
            if isinstance(leaf, jax.ShapeDtypeStruct):  # Orbax found no array for it
                raise LookupError(f"it lacks {path} (imported and grown steps hold only params)")
    return read


@contextmanager
def _one_sentence(problem: str, remedy: str = "") -> Iterator[None]:
    """Any error of Orbax, which has no class for its own, as a ConfigError."""
    try:
        yield
    except Exception as error:
        reason = str(error).split("\n", 1)[0][:300]
        raise ConfigError([f"{problem}: {reason}{remedy}"], "checkpoint") from error
