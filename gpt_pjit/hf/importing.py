"""A workdir from a model of transformers: GPT-2 of any size, MPT with ALiBi, or our export."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors import SafetensorError, safe_open

from gpt_pjit.checkpoint import derived_workdir
from gpt_pjit.config import Config, DataConfig
from gpt_pjit.core.checkpointer import write_state
from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.core.runtime import check_new, read_json
from gpt_pjit.core.tokens import Tokenizer
from gpt_pjit.hf.models import HFModel, Parameter, from_json, parameters
from gpt_pjit.hf.tokenizer_files import read_tokenizer

DTYPES = ("F32", "BF16", "F16")  # as safetensors names them
PREFIX = "transformer."  # some GPT-2 on the hub lack it
EMBEDDING, HEAD = f"{PREFIX}wte.weight", "lm_head.weight"
MASK = re.compile(rf"{re.escape(PREFIX)}h\.\d+\.attn\.(bias|masked_bias)")  # of old GPT-2 files
MOST_PADDING = 1024  # rows of the embedding that no token has
WHOLE, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
HUB_FILES = (  # of the top folder of the repository only: a * would match in folders too
    *("config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"),
    *(WHOLE, INDEX, ADAPTER, "model-?????-of-?????.safetensors"),
)
CONVERT = (
    "its weights may be a .bin, a Python pickle, which can run code; convert them with: python -c "
    '"from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; '
    "[c.from_pretrained('{source}').save_pretrained('NEW') for c in (M, T)]\" and import NEW"
)


@dataclass(frozen=True)
class Stored:
    """A tensor in a file; `read` copies it into memory."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        with safe_open(self.file, "numpy") as file:
            return file.get_tensor(self.name)


def import_model(source: str, out: Path, revision: str | None = None) -> HFModel:
    """Makes the workdir `out`, with a checkpoint of step 0, from a folder or a name on the hub.

    Raises ConfigError where the model is not one of ours, or its files are incomplete.
    """
    check_new(out)
    folder, commit = _folder(source, revision)
    origin = source if commit else str(folder.resolve())
    hf = from_json(_config_json(folder), str(folder / "config.json"))
    tokenizer = read_tokenizer(folder)
    tensors = stored_tensors(folder, origin)
    table = list(parameters(hf.family, hf.model, hf.sequence_length))
    problems = [
        *_wrong_tensors(table, tensors),
        *_wrong_tokenizer(tokenizer, hf.model.vocab_size),
    ]
    if problems:
        raise ConfigError(problems, str(folder))
    config = Config(model=hf.model, data=DataConfig(sequence_length=hf.sequence_length))
    provenance = {"kind": "import", "from": origin, "revision": commit}
    with derived_workdir(out, config, tokenizer, provenance) as draft:
        params = {tuple(p.path.split("/")): _array(p, tensors) for p in table}
        state = {"step": np.int32(0), "params": unflatten_dict(params)}
        write_state(draft / "checkpoints", 0, state)
    return hf


def stored_tensors(folder: Path, source: str = "") -> dict[str, Stored]:
    """Every tensor in the safetensors of `folder`, by its full name; only headers are read.

    Raises ConfigError if there are none, or a file is damaged, missing or ambiguous.
    """
    if (folder / INDEX).exists():
        shards = read_json(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
            raise _damaged(folder / INDEX)
        names = sorted({Path(shard).name for shard in shards.values()})
        if (folder / WHOLE).exists() and WHOLE not in names:
            problem = f"{folder} has {WHOLE} as well as the files of {INDEX}; delete the stale ones"
            raise ConfigError([problem], "import")
        if missing := [name for name in names if not (folder / name).exists()]:
            problem = f"{folder} lacks {', '.join(missing)}, which {INDEX} lists; fetch it again"
            raise ConfigError([problem], "import")
    elif (folder / WHOLE).exists():
        names = [WHOLE]
    else:
        remedy = CONVERT.format(source=source or folder)
        raise ConfigError([f"{folder} has no {WHOLE}; {remedy}"], "import")
    tensors: dict[str, Stored] = {}
    for tensor in (tensor for name in names for tensor in _read_header(folder / name)):
        name = tensor.name
        full = name if name.startswith(PREFIX) or name == HEAD else PREFIX + name
        if full in tensors:
            first = tensors[full]
            problem = f"{name} in {tensor.file.name} and {first.name} in {first.file.name} are both"
            raise ConfigError([f"{problem} {full}; keep one"], str(folder))
        tensors[full] = tensor
    return tensors


def _read_header(path: Path) -> list[Stored]:
    try:
        with safe_open(path, "numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return [
                Stored(path, name, s.get_dtype(), tuple(s.get_shape()))
                for name, s in slices.items()
            ]
    except (SafetensorError, OSError):
        raise _damaged(path) from None


def _damaged(path: Path) -> ConfigError:
    return ConfigError([f"{path} is damaged or cut short; fetch it again"], "import")


def _array(p: Parameter, tensors: dict[str, Stored]) -> np.ndarray:
    """Our array, float32, filled layer by layer."""
    array = np.empty(p.shape.shape, np.float32)
    for layer, name in zip(array if p.stacked else [array], p.names, strict=True):
        layer[...] = p.ours(tensors[name].read())
        if not np.isfinite(layer).all():
            raise ConfigError([f"{name} holds NaN or infinity"], str(tensors[name].file))
    return array


def _wrong_tensors(table: list[Parameter], tensors: dict[str, Stored]) -> list[str]:
    """What is missing, of another shape or dtype, or cannot be left out; in order of names."""
    expected = {name: p.their_shape for p in table for name in p.names}
    problems = []
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            problems.append(f"there is no tensor {name}, of shape {expected[name]}")
        elif name not in expected:
            problems += _why_not_left_out(name, tensors)
        elif tensors[name].shape != expected[name]:
            problems.append(f"{name}: expected shape {expected[name]}, got {tensors[name].shape}")
        elif tensors[name].dtype not in DTYPES:
            problems.append(f"{name}: expected {' or '.join(DTYPES)}, got {tensors[name].dtype}")
    return problems


def _why_not_left_out(name: str, tensors: dict[str, Stored]) -> list[str]:
    """A tensor that is no parameter of ours must be equal to what we compute instead of it."""
    stored = tensors[name]
    if (
        name == HEAD
        and EMBEDDING in tensors
        and {stored.dtype, tensors[EMBEDDING].dtype} <= {*DTYPES}
    ):
        embedding = tensors[EMBEDDING].read().astype(np.float32)
        if np.array_equal(stored.read().astype(np.float32), embedding):
            return []
        return [f"{name} differs from {EMBEDDING}; our model has one matrix for both"]
    if mask := MASK.fullmatch(name):
        array = stored.read()
        if mask[1] == "masked_bias" and array.size == 1 and array.item() <= -1e4:
            return []  # the score of a masked position: large enough to give it no weight
        if mask[1] == "bias" and array.ndim == 4 and array.shape[2] == array.shape[3]:
            causal = np.tri(array.shape[2], dtype=bool)
            if array.shape[:2] == (1, 1) and np.array_equal(array[0, 0], causal):
                return []
        return [f"{name} is not the causal mask, and our model has no other"]
    return [f"tensor {name} is not part of this model"]


def _wrong_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> list[str]:
    size, remedy = tokenizer.vocab_size, "fetch the tokenizer that belongs to the model"
    if size > vocab_size:
        constraint = f"is smaller than the {size} ids of {tokenizer.name} beside it"
    elif vocab_size - size > min(MOST_PADDING, vocab_size // 2):
        constraint = f"is far larger than the {size} ids of {tokenizer.name} beside it"
    else:
        return []
    return [str(Problem("vocab_size", vocab_size, constraint, remedy))]


def _config_json(folder: Path) -> dict:
    path = folder / "config.json"
    if path.is_file():
        return read_json(path)
    if (folder / ADAPTER).exists():
        base = read_json(folder / ADAPTER).get("base_model_name_or_path")
        problem = f"{folder} is an adapter of {base}, not a model; merge the two with peft"
        remedy = "merge_and_unload() of its model, then save_pretrained(NEW)) and import NEW"
        raise ConfigError([f"{problem} ({remedy}"], "import")
    raise ConfigError([f"{folder} has no config.json, so it is not a model"], "import")


def _folder(source: str, revision: str | None) -> tuple[Path, str | None]:
    """The folder of that name, or a download of the hub's files and its commit."""
    if (folder := Path(source).expanduser()).is_dir():
        if revision:
            constraint = f"is of the hub, but {source} is a folder here"
            raise ConfigError([Problem("revision", revision, constraint, "leave it out")], "import")
        return folder, None
    from huggingface_hub import snapshot_download

    try:
        files = snapshot_download(source, revision=revision, allow_patterns=list(HUB_FILES))
    except Exception as error:  # of many kinds: no network, no such name, no access
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        problem = f"{source} is not a folder here, and the hub did not provide it: {reason}"
        raise ConfigError([problem], "import") from None
    return Path(files), Path(files).name  # the cache has a folder for each commit
