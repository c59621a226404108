"""Saving and restoring a training state with Orbax, asynchronously, onto any mesh."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp


class Checkpointer:
    """Checkpoints of one run under `directory`, the newest `keep` of them."""

    def __init__(self, directory: Path, keep: int):
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
