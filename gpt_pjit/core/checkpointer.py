"""Saving and restoring a training state with Orbax, asynchronously, onto any mesh."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import unflatten_dict

from gpt_pjit.core.errors import ConfigError

ITEM = "default"  # the name that Orbax gives a checkpoint of one item
MANIFEST = f"{ITEM}/manifest.ocdbt"
PARTS = ("_CHECKPOINT_METADATA", f"{ITEM}/_METADATA", MANIFEST)


class Checkpointer:
    """Checkpoints of one run under `directory`, the newest `keep` of them (None: all)."""

    def __init__(self, directory: Path, keep: int | None):
        # Our loop decides when to save; Orbax only writes, in the background, and prunes.
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self.manager = ocp.CheckpointManager(directory.resolve(), options=options)

    def latest_step(self) -> int | None:
        return self.manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Copies the state off the devices and returns; the write goes on in the background."""
        self.manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, step: int, target: Any) -> Any:
        """The state of `step` as `target`, ShapeDtypeStructs with shardings of any mesh, says."""
        return self.manager.restore(step, args=ocp.args.StandardRestore(target))

    def close(self) -> None:
        """Waits for the last write; raises its error if it failed."""
        self.manager.wait_until_finished()
        self.manager.close()


def saved_steps(directory: Path) -> list[int]:
    """The steps under `directory` that were written to their end, in ascending order."""
    if not directory.is_dir():
        return []
    return sorted(ocp.utils.checkpoint_steps(directory.resolve()))


def other_steps(directory: Path, step: int) -> str:
    """The remedy where `step` will not do."""
    others = ", ".join(str(other) for other in saved_steps(directory) if other != step)
    return f"other steps here: {others or 'none'}"


def missing_parts(directory: Path, step: int) -> list[str]:
    """The files that `step` should have and has not, as after a copy that was cut short.

    They are looked for, not read: damage inside a file does not show here.
    """
    return [part for part in PARTS if not (directory / str(step) / part).exists()]


def fingerprint(directory: Path, step: int) -> str:
    """What tells a written checkpoint from any other; that of a copy is the same."""
    # Orbax's list of the files with the data, whose names are drawn at random.
    return hashlib.sha256((directory / str(step) / MANIFEST).read_bytes()).hexdigest()


def restore_params(directory: Path, step: int, target: Any) -> Any:
    """Only the parameters of `step`, as `target` says; its optimizer state is not read.

    Raises ConfigError where Orbax cannot read them.
    """
    args = ocp.args.PyTreeRestore(
        item={"params": target},
        restore_args={"params": ocp.checkpoint_utils.construct_restore_args(target)},
        partial_restore=True,
    )
    return _read(directory, step, args)["params"]


def read_arrays(directory: Path, step: int, tree: Any) -> Any:
    """The arrays of `step` that `tree`, a part of a state, names: NumPy arrays on this host.

    Raises ConfigError where it does not hold them all, or Orbax cannot read them.
    """
    args = ocp.args.PyTreeRestore(
        item=tree,
        restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree),
        partial_restore=True,
    )
    read = _read(directory, step, args)
    # Orbax leaves what it has not found as it was asked for.
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(read)):
        problem = f"{directory / str(step)} does not hold all of {', '.join(tree)}"
        remedy = "choose a step that was trained: imported and grown ones are parameters alone"
        raise ConfigError([f"{problem}; {remedy}"], "checkpoint")
    return read


def write_state(directory: Path, step: int, state: Any) -> None:
    """Writes a state, or a part of one, that is in NumPy arrays, and waits for it."""
    # Not in the background: for that, Orbax would copy all arrays first.
    options = ocp.CheckpointManagerOptions(create=True, enable_async_checkpointing=False)
    with ocp.CheckpointManager(directory.resolve(), options=options) as manager:
        manager.save(step, args=ocp.args.StandardSave(state))


def read_parameter(directory: Path, step: int, path: str, shape: jax.ShapeDtypeStruct) -> Any:
    """One parameter of `step`, a NumPy array; `path` is its names joined by slashes."""
    tree = unflatten_dict({("params", *path.split("/")): shape})
    return jax.tree.leaves(read_arrays(directory, step, tree))[0]


def _read(directory: Path, step: int, args: ocp.args.PyTreeRestore) -> Any:
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            return reader.restore(directory.resolve() / str(step) / ITEM, args=args)
    except Exception as error:  # Orbax raises just that where data are cut short
        reason = str(error).split("\n", 1)[0][:300]
        problem = f"step {step} of {directory.parent} cannot be read: {reason}"
        remedy = f"if a file is damaged, {other_steps(directory, step)}"
        raise ConfigError([f"{problem}; {remedy}"], "checkpoint") from error
