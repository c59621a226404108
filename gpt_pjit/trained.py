"""A trained model, loaded from a checkpoint onto any mesh, for code that does not train."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gpt_pjit.checkpoint_arrays import verify
from gpt_pjit.config import Config, MeshConfig
from gpt_pjit.core.checkpoints import fingerprints, newest_or_wanted, other_steps, restore_params
from gpt_pjit.core.errors import ConfigError, IntegrityError, Problem
from gpt_pjit.core.files import as_path
from gpt_pjit.core.model import Model, build_model
from gpt_pjit.core.runtime import connect, initialize_devices, pod_devices, read_run
from gpt_pjit.core.sharding import make_mesh, mesh_shape
from gpt_pjit.core.tokens import Tokenizer, TrainingData, held_out_batches, saved_tokenizer
from gpt_pjit.core.training import validation_metrics
from gpt_pjit.core.validation import CHOICES


@dataclass(frozen=True)
class Trained:
    """A model, its weights and its tokenizer; call it inside `jax.set_mesh(trained.mesh)`.

    `config` and `workdir` are the run's, `step` is the checkpoint's; `model.config.dtype` may
    differ from the run's.
    """

    model: Model
    weights: Any
    tokenizer: Tokenizer
    config: Config
    workdir: Path
    step: int

    @property
    def mesh(self) -> Mesh:
        return self.model.mesh


def start_devices(*, tensor: int = 1, distributed: bool = False) -> None:
    """Call once, before anything touches a device."""
    initialize_devices(MeshConfig(tensor=tensor), distributed=distributed)


def load_trained(checkpoint: str | Path, *, tensor: int = 1, dtype: str = "") -> Trained:
    """Loads `checkpoint`: a workdir, for its newest step, or WORKDIR/checkpoints/STEP.

    `tensor` devices split the model; the rest split the batch. `dtype` replaces `model.dtype`.
    Raises ConfigError if there is no such checkpoint, or it cannot be loaded with these options;
    IntegrityError if it is damaged. Of a workdir, a damaged step is passed over with a warning.
    """
    workdir, wanted = split_step(as_path(checkpoint))
    config, record = read_run(workdir)
    _check(config.model.n_heads, tensor, dtype)
    c = dataclasses.replace(config.model, dtype=dtype or config.model.dtype)
    mesh = make_mesh(mesh_shape(1, -1, tensor, jax.device_count()), pod_devices())
    model = build_model(c, config.data.sequence_length, config.partition, mesh)
    connect(mesh)
    with jax.set_mesh(mesh):
        step, params = _restored(workdir, wanted, model)
        _check_finite(params, workdir, step)
        tokenizer = run_tokenizer(workdir, record)
        return Trained(model, model.weights(params), tokenizer, config, workdir, step)


def held_out_metrics(checkpoint: str | Path, data: TrainingData) -> dict[str, float]:
    """The run's own validation of `checkpoint`: loss, perplexity, bits per byte."""
    workdir, wanted = split_step(as_path(checkpoint))
    config, _ = read_run(workdir)
    rows = config.data.batch_size
    devices = max(n for n in range(1, jax.device_count() + 1) if rows % n == 0)
    mesh = make_mesh((1, devices, 1), jax.devices()[:devices])
    model = build_model(config.model, config.data.sequence_length, config.partition, mesh)
    with jax.set_mesh(mesh):
        _, params = _restored(workdir, wanted, model)
        batches = held_out_batches(data, config, np.arange(rows))
        per_byte = data.held_out_tokens / data.held_out_bytes
        return validation_metrics(model, params, batches, rows, per_byte)


def split_step(path: Path) -> tuple[Path, int | None]:
    """(WORKDIR, STEP) of the path WORKDIR/checkpoints/STEP, else (path, None)."""
    if path.parent.name == "checkpoints" and path.name.isdigit():
        return path.parent.parent, int(path.name)
    return path, None


def find_checkpoint(path: Path) -> tuple[Path, int]:
    """The workdir and step that `path` names; a workdir alone means its newest whole step.

    Raises ConfigError if there is no such step, IntegrityError if its parameters are damaged.
    """
    workdir, wanted = split_step(path)
    read_run(workdir)
    directory = workdir / "checkpoints"
    step, _ = newest_or_wanted(directory, wanted, partial(verify, directory))
    return workdir, step


def _restored(workdir: Path, wanted: int | None, model: Model) -> tuple[int, Any]:
    """The step `wanted`, or the newest that can be read, and its parameters on the model's mesh."""
    directory = workdir / "checkpoints"
    read = partial(restore_params, directory, target=model.params)
    return newest_or_wanted(directory, wanted, read)


def _check(n_heads: int, tensor: int, dtype: str) -> None:
    problems = []
    works = [size for size in range(1, n_heads + 1) if n_heads % size == 0]
    if tensor not in works:
        remedy = f"try {', '.join(map(str, works))}"
        constraint = f"must divide the model's {n_heads} heads"
        problems.append(Problem("tensor", tensor, constraint, remedy))
    known = CHOICES["model.dtype"]
    if dtype and dtype not in known:
        problems.append(Problem("dtype", dtype, "no such dtype", " or ".join(known)))
    if problems:
        raise ConfigError(problems, "checkpoint")


def _check_finite(params: Any, workdir: Path, step: int) -> None:
    """Raises IntegrityError where a run has diverged, which older versions saved."""
    if bad := fingerprints(params).not_finite:
        problem = f"step {step} of {workdir} holds NaN or infinity in {', '.join(bad)}"
        remedy = other_steps(workdir / "checkpoints", step)
        raise IntegrityError([f"{problem}; {remedy}"], "checkpoint")


def run_tokenizer(workdir: Path, record: dict[str, Any]) -> Tokenizer:
    """The tokenizer that `run.json` records; ConfigError if the workdir holds another or none."""
    if "tokenizer" not in record:
        raise IntegrityError([f"run.json of {workdir} names no tokenizer"], "checkpoint")
    tokenizer, recorded = saved_tokenizer(workdir), record["tokenizer"]
    if tokenizer.sha256 != recorded["sha256"]:
        found = f"{tokenizer.file} differs" if tokenizer.file else "none is there"
        problem = (
            f"{workdir} should hold the tokenizer with SHA-256 {recorded['sha256']}, but {found}"
        )
        remedy = f"copy tokenizer.json or tokenizer.model from {recorded['path']}"
        raise ConfigError([f"{problem}; {remedy}"], "checkpoint")
    return tokenizer
