"""The steps under a folder of checkpoints, and what is written beside the arrays of each."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt_pjit.core.checkpoints.files import check_files
from gpt_pjit.core.checkpoints.orbax_paths import COMMIT
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.files import LARGEST_JSON, is_remote, read_regular

ITEM = "default"  # the name that Orbax gives a checkpoint of one item
MANIFEST = f"{ITEM}/manifest.ocdbt"  # lists the files with the data
METADATA = "_CHECKPOINT_METADATA"
STEP = re.compile("0|[1-9][0-9]{0,9}")  # the name of its folder; no leading zeros
DRAFT = ".orbax-checkpoint-tmp"  # ends the name of a local step that is being written or removed
PARTS = (METADATA, f"{ITEM}/_METADATA", MANIFEST)


def saved_steps(directory: Path) -> list[int]:
    """The steps under `directory` whose writing was finished, in ascending order."""
    return sorted(int(folder.name) for folder in _steps(directory) if _is_final(folder))


def unfinished(directory: Path) -> list[Path]:
    """The folders under `directory` of steps that are being written, or were when a run died."""
    drafts = directory.glob(f"*{DRAFT}*")
    return [*drafts, *(folder for folder in _steps(directory) if not _is_final(folder))]


def other_steps(directory: Path, step: int) -> str:
    """The end of a message about a step that cannot be used."""
    others = [str(other) for other in saved_steps(directory) if other != step]
    return f"other steps here: {', '.join(others) or 'none'}"


def missing_parts(directory: Path, step: int) -> list[str]:
    """The files that `step` should hold but does not."""
    return [part for part in PARTS if not (directory / str(step) / part).exists()]


def require_parts(directory: Path, step: int) -> None:
    """Raises unless the files of `step` are there, and are files: reading a pipe never ends."""
    if missing := missing_parts(directory, step):
        raise LookupError(f"it lacks {', '.join(missing)}")
    try:
        check_files(directory / str(step))
    except ConfigError as error:
        raise ValueError(str(error.problems[0])) from None


def has_fingerprints(directory: Path, step: int) -> bool:
    """Whether damage to the arrays of `step` can be found; steps of older versions have none."""
    return bool(notes_of(directory, step))


def notes_of(directory: Path, step: int) -> dict[str, Any]:
    """What was saved beside the arrays: `step` and `fingerprints`."""
    content = json.loads(read_regular(directory / str(step) / METADATA, LARGEST_JSON))
    saved = content.get("custom_metadata") or {}
    if saved and not (type(saved["step"]) is int and isinstance(saved["fingerprints"], dict)):
        raise ValueError(f"its {METADATA} has neither a step nor fingerprints")
    return saved


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


def _steps(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return [path for path in directory.iterdir() if STEP.fullmatch(path.name) and path.is_dir()]


def _is_final(folder: Path) -> bool:
    """Whether the writing of a step was finished: locally, Orbax renames it then."""
    return not is_remote(folder) or (folder / COMMIT).exists()
