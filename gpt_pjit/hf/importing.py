"""A workdir from a model of transformers: GPT-2 of any size, MPT, or an export of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from gpt_pjit.checkpoint import derived_workdir, no_data_yet
from gpt_pjit.config import Config, DataConfig
from gpt_pjit.core.checkpointer import write_state
from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.core.runtime import check_new
from gpt_pjit.core.tokens import Tokenizer
from gpt_pjit.hf.configs import Form, from_json
from gpt_pjit.hf.names import Parameter, parameters
from gpt_pjit.hf.tensors import DTYPES, INDEX, Stored, stored_tensors
from gpt_pjit.hf.tokenizer_files import read_tokenizer

PREFIX = "transformer."  # the hub's GPT-2 has its names without it
NO_WEIGHTS = (".attn.bias", ".attn.masked_bias", "lm_head.weight")  # masks; and wte again
HUB_FILES = (  # of this folder of the repository only: a * would reach into folders
    *("config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"),
    *(INDEX, "model.safetensors", "model-?????-of-?????.safetensors"),
)


def import_model(source: str, out: Path, revision: str | None = None) -> Form:
    """Makes the workdir `out`, with a checkpoint of step 0, of a folder or a name on the hub.

    Raises ConfigError where the model is not one of ours, or its files are not whole.
    """
    check_new(out)
    folder, commit = _folder(source, revision)
    origin = source if commit else str(folder.resolve())
    form = from_json(_config_json(folder), str(folder / "config.json"))
    tokenizer = read_tokenizer(folder)
    tensors = {
        _whole_name(name): tensor
        for name, tensor in stored_tensors(folder).items()
        if not name.endswith(NO_WEIGHTS)
    }
    table = list(parameters(form.family, form.model, form.sequence_length))
    _check(table, tensors, form.model.vocab_size, tokenizer, str(folder))
    config = Config(model=form.model, data=DataConfig(sequence_length=form.sequence_length))
    with derived_workdir(
        out,
        config,
        source={"kind": "import", "from": origin, "revision": commit},
        data=no_data_yet(origin, tokenizer.sha256, tokenizer.vocab_size),
        tokenizer=(tokenizer.file, tokenizer.content),
        starts=[],
    ) as draft:
        params = {tuple(p.path.split("/")): _array(p, tensors) for p in table}
        state = {"step": np.int32(0), "params": unflatten_dict(params)}
        write_state(draft / "checkpoints", 0, state)
    return form


def _array(p: Parameter, tensors: dict[str, Stored]) -> np.ndarray:
    """Ours, float32, filled layer by layer."""
    array = np.empty(p.shape.shape, np.float32)
    for layer, name in zip(array if p.stacked else [array], p.names, strict=True):
        layer[...] = p.ours(tensors[name].read())
    return array


def _check(
    table: list[Parameter],
    tensors: dict[str, Stored],
    vocab_size: int,
    tokenizer: Tokenizer,
    source: str,
) -> None:
    expected = {name: p.their_shape for p in table for name in p.names}
    missing, other = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    problems = [f"no tensor {name} of shape {expected[name]}" for name in missing]
    problems += [f"tensor {name} is none of this model's" for name in other]
    for name in expected.keys() & tensors.keys():
        got = tensors[name]
        if got.shape != expected[name]:
            problems.append(f"{name}: expected shape {expected[name]}, got {got.shape}")
        elif got.code not in DTYPES:
            problems.append(f"{name}: expected one of {', '.join(DTYPES)}, got {got.code}")
    problems.sort()
    if tokenizer.vocab_size > vocab_size:
        constraint = f"is smaller than the {tokenizer.vocab_size} ids of {tokenizer.name} beside it"
        remedy = "fetch the tokenizer that belongs to the model"
        problems.append(str(Problem("vocab_size", vocab_size, constraint, remedy)))
    if problems:
        raise ConfigError(problems, source)


def _whole_name(name: str) -> str:
    return name if name.startswith(PREFIX) else PREFIX + name


def _config_json(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError([f"{path} cannot be read: {error}"], "import") from None
    if not isinstance(fields, dict):
        raise ConfigError([f"{path} holds no fields; fetch it again"], "import")
    return fields


def _folder(source: str, revision: str | None) -> tuple[Path, str | None]:
    """The folder of that name, or a download of the hub's files and its commit."""
    if Path(source).is_dir():
        if revision:
            constraint = f"is one of the hub, and {source} is a folder here"
            raise ConfigError([Problem("revision", revision, constraint, "leave it out")], "import")
        return Path(source), None
    from huggingface_hub import snapshot_download

    try:
        files = snapshot_download(source, revision=revision, allow_patterns=list(HUB_FILES))
    except Exception as error:  # of many kinds: no network, no such name, no right to it
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        problem = f"{source} is no folder here, and the hub did not give it: {reason}"
        raise ConfigError([problem], "import") from None
    return Path(files), Path(files).name  # the cache has a folder for each commit
