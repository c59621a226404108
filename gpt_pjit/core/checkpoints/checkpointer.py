"""Saving a training state with Orbax, asynchronously, and resuming from it.

A step is saved with the fingerprint of each array, and counts only if the same is read again.
Nothing is deleted but the oldest steps, once a newer one is whole.
"""

import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.options import AsyncOptions

from gpt_pjit.core.checkpoints.fingerprints import fingerprints
from gpt_pjit.core.checkpoints.orbax_paths import COMMIT, orbax_folder
from gpt_pjit.core.checkpoints.reading import newest_whole, restore
from gpt_pjit.core.checkpoints.steps import (
    DRAFT,
    ITEM,
    has_fingerprints,
    missing_parts,
    one_sentence,
    saved_steps,
    unfinished,
)
from gpt_pjit.core.console import warn
from gpt_pjit.core.errors import FaultError, IntegrityError
from gpt_pjit.core.files import is_remote, remove_folder, write_probe
from gpt_pjit.core.runtime import all_or_none


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


def _check_written(directory: Path, step: int) -> None:
    if jax.process_index() == 0 and (missing := missing_parts(directory, step)):
        raise FileNotFoundError(f"it lacks {missing[0]}")


def _check_sound(found: Any, step: int, workdir: Path) -> None:
    if found.torn:
        path, devices = next(iter(found.torn.items()))
        named = ", ".join(f"{device} (process {device.process_index})" for device in devices)
        problem = f"{path} on {named} differs from its replicas at step {step}"
        remedy = "The device or its memory is faulty; start again without it"
        raise IntegrityError([f"{problem}: nothing is saved. {remedy}"], str(workdir))
    if found.not_finite:
        path = found.not_finite[0]
        problem = f"{path} holds NaN or infinity at step {step}: nothing is saved"
        remedy = "resume from the last one with a lower learning rate"
        kept = f"the checkpoints before it are kept; {remedy}"
        raise IntegrityError([f"{problem}; {kept}"], str(workdir))


def _remove(directory: Path, steps: list[int]) -> None:
    """If killed meanwhile, the rest is unfinished, and goes at the next start."""
    for folder in (directory / str(step) for step in steps):
        if is_remote(folder):
            (folder / COMMIT).unlink()
        else:
            folder = folder.rename(folder.with_name(f"{folder.name}{DRAFT}"))
        remove_folder(folder)
