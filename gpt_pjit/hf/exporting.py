"""A checkpoint as a folder that transformers, and whatever reads its format, loads unaided."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.numpy import save_file

from gpt_pjit.config import Config
from gpt_pjit.core.checkpointer import fingerprint, read_parameter
from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.core.model import param_shapes
from gpt_pjit.core.runtime import new_folder, new_run_from, read_run
from gpt_pjit.core.sharding import paths_and_leaves
from gpt_pjit.core.tokens import Tokenizer
from gpt_pjit.evaluate import ModelResults, results_table
from gpt_pjit.hf.models import CLASSES, HFModel, Parameter, family_of, parameters, to_json
from gpt_pjit.hf.tokenizer_files import tokenizer_files
from gpt_pjit.trained import find_checkpoint, run_tokenizer

LONGEST = 4  # times the trained context: the default of ALiBi exports
SHARD_BYTES = 10**9  # of a file of weights, which is in memory until it is written
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or its name on the hub
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
# In training each text came after this token.
inputs = tokenizer(tokenizer.eos_token + "Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0]))
```"""


@dataclass(frozen=True)
class Export:
    """What was written: the class of transformers, the step it is from, and how much of it."""

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

    It takes contexts up to `max_length`; learned positions end with the training context. Raises
    ConfigError, and writes nothing, where transformers has no such model, the weights are not
    finite, or `results` are those of another checkpoint. Holds one file of weights in memory, and
    one array of the checkpoint.
    """
    workdir, step = find_checkpoint(checkpoint)
    if results:
        _check_results(results, workdir, step)
    config, record = read_run(workdir)
    tokenizer = run_tokenizer(workdir, record)
    hf = HFModel(_family(config, workdir), config.model, config.data.sequence_length)
    longest = _longest(hf, max_length)
    table = list(parameters(hf.family, hf.model, hf.sequence_length))
    sizes = {name: int(np.prod(p.their_shape)) for p in table for name in p.names}
    n_params = sum(sizes.values())
    tokens = step * config.data.batch_size * config.data.sequence_length
    card = model_card(
        hf,
        tokenizer,
        name=out.resolve().name,
        origin=history(step, tokens, record.get("source")),
        n_params=n_params,
        max_length=longest,
        results=results,
    )
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eot_id)
    files = {
        "config.json": _json(to_json(hf, longest, tokenizer.eot_id, dtype)),
        "generation_config.json": _json(ids),
        "README.md": card.encode(),
        **tokenizer_files(tokenizer, longest),
    }
    with new_folder(out) as draft:
        for name, content in files.items():
            (draft / name).write_bytes(content)
        tensors = _tensors(workdir / "checkpoints", step, config, table)
        weights = write_tensors(draft, sizes, tensors, dtype, shard_bytes)
    return Export(out, CLASSES[hf.family], step, n_params, weights, longest)


def write_tensors(
    folder: Path,
    sizes: dict[str, int],
    tensors: Iterator[tuple[str, np.ndarray]],
    dtype: str,
    shard_bytes: int = SHARD_BYTES,
) -> tuple[str, ...]:
    """Writes named tensors, of `sizes` elements, as files of about `shard_bytes`; their names."""
    split = split_state_dict_into_shards_factory(
        {name: size * DTYPES[dtype].itemsize for name, size in sizes.items()},
        get_storage_size=lambda size: size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    shards: dict[str, dict[str, np.ndarray]] = {file: {} for file in split.filename_to_tensors}
    for name, tensor in tensors:
        file = split.tensor_to_filename[name]
        # A copy: the library takes the memory as it lies, and a view would keep all layers alive.
        shards[file][name] = np.array(tensor, DTYPES[dtype], order="C")
        del tensor
        if len(shards[file]) == len(split.filename_to_tensors[file]):
            save_file(shards.pop(file), folder / file, metadata={"format": "pt"})
    assert not shards, f"tensors are missing in {', '.join(shards)}"
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_bytes(_json(index))
    return tuple(split.filename_to_tensors)


def _json(fields: dict[str, Any]) -> bytes:
    return (json.dumps(fields, indent=2) + "\n").encode()


def _family(config: Config, workdir: Path) -> str:
    try:
        return family_of(config.model)
    except ConfigError as error:
        *others, last = error.problems
        way_on = f"to train on from it here, {new_run_from(workdir, config)}"
        raise ConfigError([*others, f"{last}; {way_on}"], "export") from None


def _check_results(results: ModelResults, workdir: Path, step: int) -> None:
    settings = results.settings
    if settings.get("fingerprint") != fingerprint(workdir / "checkpoints", step):
        other = f"step {settings.get('step')} of {settings.get('checkpoint')}"
        problem = f"{results.origin} has the results of another checkpoint, {other}"
        remedy = f"evaluate {workdir / 'checkpoints' / str(step)}, or export the other one"
        raise ConfigError([f"{problem}; {remedy}"], "--results")


def _longest(hf: HFModel, wanted: int | None) -> int:
    trained = hf.sequence_length
    if hf.family == "gpt2":
        if wanted not in (None, trained):
            constraint = f"learned positions are for exactly {trained} tokens"
            raise ConfigError([Problem("max_length", wanted, constraint, "leave it out")], "export")
        return trained
    return wanted or LONGEST * trained


def _tensors(
    directory: Path, step: int, config: Config, table: list[Parameter]
) -> Iterator[tuple[str, np.ndarray]]:
    """The name and content of their tensors; one array of ours is in memory at a time."""
    own = dict(paths_and_leaves(param_shapes(config.model, config.data.sequence_length)))
    for p in table:
        if p.path in own:
            array = read_parameter(directory, step, p.path, own[p.path])
        else:  # a bias that our model does without
            array = np.zeros(p.shape.shape, np.float32)
        if not np.isfinite(array).all():
            problem = f"step {step} of {directory.parent} holds NaN or infinity in {p.path}"
            raise ConfigError([problem], "export")
        for name, layer in zip(p.names, array if p.stacked else [array], strict=True):
            yield name, p.theirs(layer)
        del array, layer  # before the next one is read


def model_card(
    hf: HFModel,
    tokenizer: Tokenizer,
    *,
    name: str,
    origin: str,
    n_params: int,
    max_length: int,
    results: ModelResults | None,
) -> str:
    """README.md of an export; `origin` says where the weights come from."""
    c = hf.model
    limit = "max_seq_len" if hf.family == "mpt" else "n_positions"
    padding = c.vocab_size - tokenizer.vocab_size
    vocabulary = f"The vocabulary is that of {tokenizer.name}, {tokenizer.vocab_size:,} tokens"
    if padding > 0:
        vocabulary += f", and {padding:,} rows of padding, which were never a target in training"
    lines = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n",
        f"# {name}\n",
        f"A GPT of {n_params:,} parameters: {c.n_layers} layers, {c.n_heads} heads, width "
        f"{c.d_model:,}, {'ALiBi' if c.positions == 'alibi' else 'learned'} positions, as "
        f"`{CLASSES[hf.family]}`. {origin}\n",
        f"Trained on contexts of {hf.sequence_length:,} tokens; this export takes up to "
        f"{max_length:,} (`{limit}`). {vocabulary}; each document ended with id "
        f"{tokenizer.eot_id}.\n",
        USE,
    ]
    if results:
        lines += ["\n## Results\n", results_table(results)]
    return "\n".join(lines) + "\n"


def history(step: int, tokens: int, source: dict[str, Any] | None) -> str:
    """Where the weights of `step` come from; `source` is that of run.json, if there is one."""
    sentences = []
    if step:
        sentences.append(f"Trained with gpt_pjit for {step:,} steps, {tokens:,} tokens.")
    origins = []
    while source:
        if source["kind"] == "average":
            steps = ", ".join(f"{step:,}" for step in source["steps"])
            origins.append(f"the mean of the checkpoints of steps {steps}")
        elif commit := source.get("revision"):
            origins.append(f"imported from {source['from']} at {commit}")
        else:  # a folder: its name alone, without those above it
            verb = {"grow": "grown", "import": "imported"}[source["kind"]]
            origins.append(f"{verb} from {Path(source['from']).name}")
        source = source.get("source")
    if origins:
        sentences.append(f"Origin of the weights, latest first: {'; '.join(origins)}.")
    return " ".join(sentences)
