"""Saving and restoring a training state with Orbax, asynchronously, onto any mesh."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import unflatten_dict
from jax.experimental import multihost_utils

from gpt_pjit.core.console import warn
from gpt_pjit.core.errors import ConfigError

ITEM = "default"  # the name that Orbax gives a checkpoint of one item
MANIFEST = f"{ITEM}/manifest.ocdbt"
PARTS = ("_CHECKPOINT_METADATA", f"{ITEM}/_METADATA", MANIFEST)


class _Folder(type(epath.Path("/"))):  # type: ignore[misc]
    """A local folder for Orbax. Orbax's own path class reads a name as a glob pattern, so it finds
    nothing in `run[1]`, and takes /s3/run for s3://run.
    """

    _uri_scheme = None

    def glob(self, pattern: str) -> Iterator[Any]:
        return (self / match for match in glob.glob(pattern, root_dir=self))


class Checkpointer:
    """Checkpoints of one run under `directory`, the newest `keep` of them (None: all)."""

    def __init__(self, directory: Path, keep: int | None):
        self.directory = directory
        self._unchecked: int | None = None  # the step that is being written
        _set_damaged_steps_aside(directory)
        # Our loop decides when to save; Orbax only writes, in the background, and prunes.
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(_Folder(directory.resolve()), options=options)

    def latest_step(self) -> int | None:
        return newest_step(self.directory)

    def save(self, step: int, state: Any) -> None:
        """Copies the state off the devices and returns; the write continues in the background.

        Raises ConfigError if the previous write failed.
        """
        self.wait()
        with _one_sentence(f"step {step} of {self.directory.parent} cannot be saved"):
            saved = self._manager.save(step, args=ocp.args.StandardSave(state))
        assert saved, f"Orbax skipped step {step}, which is not after {self._manager.latest_step()}"
        self._unchecked = step

    def wait(self) -> None:
        """Waits for a pending write; raises ConfigError if it failed or is incomplete."""
        step, self._unchecked = self._unchecked, None
        with _one_sentence(f"step {step} of {self.directory.parent} was not saved"):
            self._manager.wait_until_finished()
        if step is not None and jax.process_index() == 0:
            _check_written(self.directory, step)

    def restore(self, step: int, target: Any) -> Any:
        """The state of `step` with the shapes, dtypes and shardings of `target`, on any mesh."""
        with _read_errors(self.directory, step):
            return self._manager.restore(step, args=ocp.args.StandardRestore(target))

    def close(self) -> None:
        """Waits for the last write; raises ConfigError if it failed."""
        try:
            self.wait()
        finally:
            self._manager.close()


def saved_steps(directory: Path) -> list[int]:
    """The finished steps under `directory`, in ascending order."""
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal() and p.is_dir())


def newest_step(directory: Path) -> int | None:
    """The newest step under `directory` that has all its parts, or None if nothing was saved.

    Warns of newer steps that lack a part; raises ConfigError if every step does.
    """
    steps = saved_steps(directory)
    missing = {step: ", ".join(missing_parts(directory, step)) for step in steps}
    newest = max((step for step in steps if not missing[step]), default=None)
    for step in reversed(steps):
        if not missing[step]:
            break
        damage = f"step {step} of {directory.parent} is damaged: it lacks {missing[step]}"
        if newest is None:
            raise ConfigError([f"{damage}; no step here is complete"], "checkpoint")
        warn(f"{damage}; using step {newest}")
    return newest


def other_steps(directory: Path, step: int) -> str:
    """Names the other steps, for a message about one that cannot be used."""
    others = ", ".join(str(other) for other in saved_steps(directory) if other != step)
    return f"other steps here: {others or 'none'}"


def missing_parts(directory: Path, step: int) -> list[str]:
    """The files that `step` lacks, for example after an interrupted copy.

    Only names are checked, so damage inside a file is not detected here.
    """
    return [part for part in PARTS if not (directory / str(step) / part).exists()]


def fingerprint(directory: Path, step: int) -> str:
    """Identifies the content of a checkpoint; copies share it."""
    # Orbax's list of its data files, whose names are random.
    return hashlib.sha256((directory / str(step) / MANIFEST).read_bytes()).hexdigest()


def restore_params(directory: Path, step: int, target: Any) -> Any:
    """The parameters of `step` as `target` describes them; the optimizer state is not read.

    Raises ConfigError if Orbax cannot read them.
    """
    args = ocp.args.PyTreeRestore(
        item={"params": target},
        restore_args={"params": ocp.checkpoint_utils.construct_restore_args(target)},
        partial_restore=True,
    )
    return _read(directory, step, args)["params"]


def read_arrays(directory: Path, step: int, tree: Any) -> Any:
    """Reads the arrays of `step` that `tree`, a part of a state, names, as NumPy arrays.

    Raises ConfigError if the step does not hold them all, or Orbax cannot read them.
    """
    args = ocp.args.PyTreeRestore(
        item=tree,
        restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree),
        partial_restore=True,
    )
    read = _read(directory, step, args)
    # Orbax leaves the placeholder where it finds no array.
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(read)):
        problem = f"{directory / str(step)} does not hold all of {', '.join(tree)}"
        remedy = "choose a trained step: imported and grown ones hold only parameters"
        raise ConfigError([f"{problem}; {remedy}"], "checkpoint")
    return read


def read_parameter(directory: Path, step: int, path: str, shape: jax.ShapeDtypeStruct) -> Any:
    """One parameter of `step`, a NumPy array; `path` is its names joined by slashes."""
    tree = unflatten_dict({("params", *path.split("/")): shape})
    return jax.tree.leaves(read_arrays(directory, step, tree))[0]


def write_state(directory: Path, step: int, state: Any) -> None:
    """Writes a state of NumPy arrays, or part of one, and waits for the write to finish."""
    # Not in the background, for which Orbax would first copy all arrays.
    options = ocp.CheckpointManagerOptions(create=True, enable_async_checkpointing=False)
    with (
        _one_sentence(f"step {step} cannot be written to {directory}"),
        ocp.CheckpointManager(_Folder(directory.resolve()), options=options) as manager,
    ):
        manager.save(step, args=ocp.args.StandardSave(state))
    _check_written(directory, step)


def _read(directory: Path, step: int, args: ocp.args.PyTreeRestore) -> Any:
    with _read_errors(directory, step), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        return reader.restore(_Folder(directory.resolve()) / str(step) / ITEM, args=args)


@contextmanager
def _read_errors(directory: Path, step: int) -> Iterator[None]:
    remedy = f"if a file is damaged, {other_steps(directory, step)}"
    with _one_sentence(f"step {step} of {directory.parent} cannot be read", f"; {remedy}"):
        yield


@contextmanager
def _one_sentence(problem: str, remedy: str = "") -> Iterator[None]:
    """Turns any error into a ConfigError: Orbax has no error class of its own."""
    try:
        yield
    except Exception as error:
        reason = str(error).split("\n", 1)[0][:300]
        raise ConfigError([f"{problem}: {reason}{remedy}"], "checkpoint") from error


def _check_written(directory: Path, step: int) -> None:
    """Raises ConfigError unless the step has all its parts; only then does a save count."""
    if missing := missing_parts(directory, step):
        problem = f"step {step} of {directory.parent} was not saved: it lacks {missing[0]}"
        raise ConfigError([problem], "checkpoint")


def _set_damaged_steps_aside(directory: Path) -> None:
    """Renames steps newer than the one a run resumes from: Orbax skips saves that precede them."""
    newest = newest_step(directory)
    if newest is not None and jax.process_index() == 0:
        for step in saved_steps(directory):
            if step > newest:
                (directory / str(step)).rename(directory / f"{step}.damaged")
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("damaged steps set aside")
