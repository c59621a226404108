"""Arrays of a checkpoint, one at a time and without a mesh, and new folders made of them."""

import dataclasses
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from gpt_pjit.config import Config
from gpt_pjit.core.checkpoints import (
    ITEM,
    MANIFEST,
    one_sentence,
    orbax_folder,
    read_part,
    require_parts,
)
from gpt_pjit.core.errors import ConfigError, IntegrityError
from gpt_pjit.core.files import check_bucket, file_errors, is_remote, remove_folder, write_json
from gpt_pjit.core.runtime import this_start
from gpt_pjit.core.tokens import Tokenizer


def fingerprint(directory: Path, step: int) -> str:
    """Identifies the content of a checkpoint; copies share it."""
    # The files that the manifest lists have names drawn at random.
    return hashlib.sha256((directory / str(step) / MANIFEST).read_bytes()).hexdigest()


def read_arrays(directory: Path, step: int, tree: Any) -> Any:
    """The arrays of `step` that `tree`, a part of a state, names: NumPy arrays on this host."""
    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return read_part(directory, step, tree, restore_args)


def read_parameter(directory: Path, step: int, path: str, shape: jax.ShapeDtypeStruct) -> Any:
    """One parameter of `step`, a NumPy array; `path` is its names joined by slashes."""
    tree = unflatten_dict({("params", *path.split("/")): shape})
    return jax.tree.leaves(read_arrays(directory, step, tree))[0]


def saved_shapes(directory: Path, step: int) -> dict[str, Any]:
    """The tree of a checkpoint: `params` and, if it is of a run, `step` and `opt_state`."""
    with one_sentence(f"step {step} of {directory.parent} cannot be read", IntegrityError):
        require_parts(directory, step)
        folder = orbax_folder(directory) / str(step) / ITEM
        tree = ocp.PyTreeCheckpointHandler().metadata(folder).tree
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def verify(directory: Path, step: int, parts: Sequence[str] = ("params",)) -> int:
    """Reads these parts of a checkpoint, parameters one at a time; returns the number of arrays.

    Raises IntegrityError at the first that is not what was saved.
    """
    shapes = saved_shapes(directory, step)
    for part in parts:
        trees = [shapes[part]]
        if part == "params":
            trees = [unflatten_dict({n: leaf}) for n, leaf in flatten_dict(shapes[part]).items()]
        for tree in trees:
            read_arrays(directory, step, {part: tree})
    return sum(len(jax.tree.leaves(shapes[part])) for part in parts)


@contextmanager
def derived_workdir(
    out: Path,
    config: Config,
    tokenizer: Tokenizer,
    source: dict[str, Any],
    run: dict[str, Any] | None = None,
) -> Iterator[Path]:
    """The new workdir `out` with its `run.json` and tokenizer; the block writes the checkpoints.

    `source` says what the weights are made of. The workdir continues the run whose `run.json` is
    `run`, if given; otherwise a new run starts there, from step 0.
    """
    record: dict[str, Any] = {
        "config": dataclasses.asdict(config),
        "starts": [],
        "tokenizer": {
            "sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "path": source["from"],
        },
    }
    kept = ("starts", "tokenizer", "data", "from", "walks")
    record |= {name: run[name] for name in kept if name in run} if run else {}
    with new_folder(out) as draft:
        if tokenizer.file:
            (draft / tokenizer.file).write_bytes(tokenizer.content)
        yield draft
        # Last: without it, a folder in a bucket that a kill has left is no run.
        write_json(draft / "run.json", record | {"source": source | {"made": this_start()}})


def origins(source: dict[str, Any] | None) -> Iterator[str]:
    """What weights were made of, latest first; `source` is that of a `run.json`."""
    while source:
        name = Path(source["from"]).name  # without the folders above it
        if source["kind"] == "average":
            yield f"the mean of the checkpoints of steps {', '.join(map(str, source['steps']))}"
        elif source["kind"] == "grow":
            yield f"grown from {name}"
        elif commit := source.get("revision"):
            yield f"imported from {source['from']} at {commit}"
        else:
            yield f"imported from {name}"
        source = source.get("source")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` at the end of the block; if it fails, nothing stays.

    In a bucket, where nothing can be renamed, `out` itself: a kill leaves what is there. Raises
    ConfigError where `check_new` does, or if nothing can be written beside `out`.
    """
    check_new(out)
    if is_remote(out):
        try:
            with file_errors(f"{out} cannot be written", "--out"):
                check_bucket(out, 0)
                yield out
        except BaseException:
            remove_folder(out)
            raise
        return
    out = out.resolve()  # the target of a link is replaced, not the link
    with file_errors(f"{out} cannot be made", "--out"):
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(prefix=f"{out.name}.partial-", dir=out.parent)
    with beside as folder, file_errors(f"{out} cannot be written", "--out"):
        draft = Path(folder) / out.name  # `folder` itself is readable by its owner only
        draft.mkdir()
        yield draft
        draft.rename(out)  # an empty folder is replaced


def check_new(out: Path) -> None:
    """Raises ConfigError unless nothing is at `out`, or an empty folder that can be replaced."""
    problem = ""
    with file_errors(f"{out} cannot be made", "--out"):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            problem = f"{out} already exists; choose another --out, or delete it"
        elif out.is_mount() or out.resolve() == Path.cwd():
            problem = f"{out} is a mount point or the current folder; choose a new folder in it"
    if problem:
        raise ConfigError([problem], "--out")
