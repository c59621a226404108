"""Restoring a state, or a part of one, onto any mesh: what is read is what was saved, or an error.

Of a run's steps the newest is taken that all processes can read; the damaged ones are set aside.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from gpt_pjit.core.checkpoints.files import check_arrays
from gpt_pjit.core.checkpoints.fingerprints import fingerprints
from gpt_pjit.core.checkpoints.orbax_paths import orbax_folder
from gpt_pjit.core.checkpoints.steps import (
    ITEM,
    METADATA,
    notes_of,
    one_sentence,
    other_steps,
    require_parts,
    saved_steps,
)
from gpt_pjit.core.console import warn
from gpt_pjit.core.errors import ConfigError, HostFailedError, IntegrityError
from gpt_pjit.core.runtime import all_or_none, everyone, from_process_0
from gpt_pjit.core.sharding import paths_and_leaves

T = TypeVar("T")
START_OVER = "restore one from a backup, or start a new --workdir"


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
        raise IntegrityError([f"{problem}; no step here is whole; {START_OVER}"], "checkpoint")
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
        saved = set(notes_of(directory, step).get("fingerprints", ()))  # older steps have none
        wanted = {path for path, _ in paths_and_leaves(target)}
        differ = sorted(saved ^ wanted)
        if saved and differ:
            folder = orbax_folder(directory) / str(step) / ITEM
            held = ocp.PyTreeCheckpointHandler().metadata(folder).tree
            if {path for path, _ in paths_and_leaves(held)} == wanted:
                raise ValueError(f"its fingerprints are of other arrays: {METADATA} is damaged")
            found = f"it {'has' if differ[0] in saved else 'lacks'} {differ[0]}"
            problem = f"{where} was saved with other optim.rules ({found})"
            raise ConfigError([f"{problem}; use the rules of that run"])


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
        saved = notes_of(directory, step)
        check_arrays(directory / str(step), ITEM, target)
        # Not through ocp.Checkpointer: if one host fails, the others would wait for it for ever.
        read = ocp.PyTreeCheckpointHandler().restore(folder / ITEM, args=args)
    with one_sentence(cannot_be_read, IntegrityError):
        if saved:  # steps of older versions have none
            _check_same(saved, step, fingerprints(read).numbers)
    return read


def _check_same(saved: dict[str, Any], step: int, read: dict[str, int]) -> None:
    if saved["step"] != step:
        raise ValueError(f"it was saved as step {saved['step']}")
    changed = [path for path, number in read.items() if saved["fingerprints"].get(path) != number]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise ValueError(f"{changed[0]}{more} is not what was saved: the files are damaged")
