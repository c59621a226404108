"""A checkpoint as a folder that transformers, and what reads its format, loads without our code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt_pjit.config import Config
from gpt_pjit.core.checkpointer import fingerprint, read_parameter
from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.core.model import param_shapes
from gpt_pjit.core.runtime import new_folder, read_run
from gpt_pjit.core.sharding import paths_and_leaves
from gpt_pjit.evaluate import ModelResults
from gpt_pjit.hf.card import history, model_card
from gpt_pjit.hf.configs import CLASSES, Form, family_of, to_json
from gpt_pjit.hf.names import Parameter, parameters
from gpt_pjit.hf.tensors import SHARD_BYTES, write_tensors
from gpt_pjit.hf.tokenizer_files import tokenizer_files
from gpt_pjit.trained import find_checkpoint, run_tokenizer

LONGEST = 4  # times the context of training, where ALiBi is not told otherwise


@dataclass(frozen=True)
class Export:
    """What was written: a class of transformers, from which step, and how much of it."""

    folder: Path
    family: str
    step: int
    n_params: int
    files: tuple[str, ...]
    max_length: int


def export(
    checkpoint: Path,
    out: Path,
    *,
    dtype: str,
    max_length: int | None = None,
    results: ModelResults | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Export:
    """Writes `checkpoint`, a workdir or one step of it, into the new folder `out`.

    Contexts up to `max_length` will do there; learned positions end with the training context.
    Raises ConfigError, and writes nothing, where transformers has no such model, or `results` are
    those of another checkpoint.
    """
    workdir, step = find_checkpoint(checkpoint)
    if results:
        _check_results(results, workdir, step)
    config, record = read_run(workdir)
    tokenizer = run_tokenizer(workdir, record)
    form = Form(family_of(config.model), config.model, config.data.sequence_length)
    longest = _longest(form, max_length)
    table = list(parameters(form.family, form.model, form.sequence_length))
    shapes = {name: p.their_shape for p in table for name in p.names}
    texts = {
        "config.json": to_json(form, longest, tokenizer.eot_id, dtype),
        "generation_config.json": dict.fromkeys(
            ("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eot_id
        ),
    }
    per_step = config.data.batch_size * config.data.sequence_length
    n_params = sum(int(np.prod(shape)) for shape in shapes.values())
    with new_folder(out) as draft:
        for name, fields in texts.items():
            (draft / name).write_text(json.dumps(fields, indent=2) + "\n")
        for name, content in tokenizer_files(tokenizer, longest).items():
            (draft / name).write_bytes(content)
        tensors = _tensors(workdir / "checkpoints", step, config, table)
        files = write_tensors(draft, shapes, tensors, dtype, shard_bytes)
        card = model_card(
            form,
            tokenizer,
            name=out.resolve().name,
            history=history(step, step * per_step, record.get("source")),
            n_params=n_params,
            max_length=longest,
            results=results,
        )
        (draft / "README.md").write_text(card)
    names = tuple(file.name for file in files)
    return Export(out, CLASSES[form.family], step, n_params, names, longest)


def _check_results(results: ModelResults, workdir: Path, step: int) -> None:
    settings = results.settings
    if settings.get("fingerprint") != fingerprint(workdir / "checkpoints", step):
        of = f"step {settings.get('step')} of {settings.get('checkpoint')}"
        problem = f"{results.origin} has the results of another checkpoint, {of}"
        remedy = f"evaluate {workdir / 'checkpoints' / str(step)}, or export that one"
        raise ConfigError([f"{problem}; {remedy}"], "--results")


def _longest(form: Form, wanted: int | None) -> int:
    trained = form.sequence_length
    if form.family == "gpt2":
        if wanted not in (None, trained):
            constraint = f"learned positions are for {trained} tokens, no more and no less"
            raise ConfigError([Problem("max_length", wanted, constraint, "leave it out")], "export")
        return trained
    if wanted is not None and wanted < 1:
        problem = Problem("max_length", wanted, "must be 1 or more", f"try {LONGEST * trained}")
        raise ConfigError([problem], "export")
    return wanted or LONGEST * trained


def _tensors(
    directory: Path, step: int, config: Config, table: list[Parameter]
) -> Iterator[np.ndarray]:
    """Their tensors, in the order of the table; one array of ours is in memory at a time."""
    own = dict(paths_and_leaves(param_shapes(config.model, config.data.sequence_length)))

    def layers(p: Parameter) -> np.ndarray | list[np.ndarray]:
        if p.path in own:
            array = read_parameter(directory, step, p.path, own[p.path])
        else:  # a bias that our model does without
            array = np.zeros(p.shape.shape, np.float32)
        return array if p.stacked else [array]

    for p in table:
        yield from map(p.theirs, layers(p))  # no name holds it while the next one is read
