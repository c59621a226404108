"""A workdir from a model of transformers, of a class in `families.py`."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors import SafetensorError, safe_open
from tokenizers import models

from gpt_pjit.checkpoint_arrays import check_new, derived_workdir
from gpt_pjit.config import Config, DataConfig
from gpt_pjit.core.checkpoints import write_state
from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.core.files import (
    LARGEST_TOKENIZER,
    check_size,
    read_json,
    read_regular,
    size_of_regular,
)
from gpt_pjit.core.model import rotary_frequencies
from gpt_pjit.core.tokens import ENDS, BytesTokenizer, Tokenizer, tokenizer_from_bytes
from gpt_pjit.core.validation import validate
from gpt_pjit.hf.exporting import is_plain_unigram
from gpt_pjit.hf.models import HFModel, Parameter, byte_level, byte_tokenizer, from_json, parameters

DTYPES = ("F32", "BF16", "F16")  # as safetensors names them
HEADS = ("lm_head.weight", "embed_out.weight")  # what versions call the output matrix
# Buffers that older files hold: causal masks, and the frequencies of rotary positions.
MASK = re.compile(r".*\.(attn|attention)\.(bias|masked_bias)")
FREQUENCIES = re.compile(r".*\.rotary_emb\.inv_freq")
MOST_PADDING = 1024  # rows of the embedding that no token has
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HUB_FILES = [  # of the top folder of the repository only: a * would match in folders too
    *("config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"),
    *(WHOLE, INDEX, "model-?????-of-?????.safetensors"),
]
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
    if not (folder / "config.json").is_file():
        raise ConfigError([f"{folder} has no config.json, so it is not a model"], "import")
    hf = from_json(read_json(folder / "config.json"), str(folder / "config.json"))
    tokenizer = read_tokenizer(folder)
    tensors = stored_tensors(folder, origin)
    config = Config(model=hf.model, data=DataConfig(sequence_length=hf.sequence_length))
    validate(config, str(folder / "config.json"), with_data=False)
    if hf.model.n_layers > len(tensors):  # before their names are written out
        problem = f"{hf.model.n_layers:,} layers, but only {len(tensors):,} tensors"
        raise ConfigError([problem], str(folder))
    table = list(parameters(hf))
    tensors = _renamed(tensors, hf)
    problems = _wrong_tensors(hf, table, tensors)
    problems += _wrong_tokenizer(tokenizer, hf.model.vocab_size)
    if problems:
        raise ConfigError(problems, str(folder))
    provenance = {"kind": "import", "from": origin, "revision": commit}
    with derived_workdir(out, config, tokenizer, provenance) as draft:
        params = unflatten_dict({p.path: _array(p, tensors) for p in table}, sep="/")
        write_state(draft / "checkpoints", 0, {"step": np.int32(0), "params": params})
    return hf


def stored_tensors(folder: Path, source: str = "") -> dict[str, Stored]:
    """Every tensor in the safetensors of `folder`, by its name; only headers are read.

    Raises ConfigError if there are none, or a file is damaged, missing or ambiguous.
    """
    tensors = []
    for path in _weight_files(folder, source):
        try:
            size_of_regular(path)
            with safe_open(path, "numpy") as file:
                for name in file.keys():  # noqa: SIM118
                    stored = file.get_slice(name)
                    tensors.append(Stored(path, name, stored.get_dtype(), (*stored.get_shape(),)))
        except (SafetensorError, OSError):
            raise _damaged(path) from None
    return {tensor.name: tensor for tensor in tensors}


def _renamed(tensors: dict[str, Stored], hf: HFModel) -> dict[str, Stored]:
    """By the names of the table: some files lack the first word of all names but the head's."""
    names = {path: name for path, name, *_ in hf.family.parameters}
    first = names["embed/embedding"].split(".")[0] + "."
    missing = "" if any(name.startswith(first) for name in tensors) else first
    return {
        names["head/kernel"] if name in HEADS else missing + name: tensor
        for name, tensor in tensors.items()
    }


def _weight_files(folder: Path, source: str) -> list[Path]:
    whole, index = folder / WHOLE, folder / INDEX
    if not index.exists():
        if not whole.exists():
            remedy = CONVERT.format(source=source or folder)
            raise ConfigError([f"{folder} has no {WHOLE}; {remedy}"], "import")
        return [whole]
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
        raise _damaged(index)
    files = sorted({folder / Path(shard).name for shard in shards.values()})
    if whole.exists() and whole not in files:
        problem = f"{folder} has {WHOLE} as well as the files of {INDEX}; delete the stale ones"
        raise ConfigError([problem], "import")
    return files


def _damaged(path: Path) -> ConfigError:
    return ConfigError([f"{path} is missing, damaged or cut short; fetch it again"], "import")


def _array(p: Parameter, tensors: dict[str, Stored]) -> np.ndarray:
    """Our array, float32, filled layer by layer."""
    array = np.empty(p.shape, np.float32)
    for name, part in p.parts(array):
        part[...] = p.ours(tensors[name].read())
        if not np.isfinite(part).all():
            raise ConfigError([f"{name} holds NaN or infinity"], str(tensors[name].file))
    return array


def _wrong_tensors(hf: HFModel, table: list[Parameter], tensors: dict[str, Stored]) -> list[str]:
    """What is missing, of another shape or dtype, or no part of our model; in order of names."""
    names = {path: name for path, name, *_ in hf.family.parameters}
    embedding = names["embed/embedding"]
    expected = {name: p.their_shape for p in table for name in p.names}
    problems = []
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            problems.append(f"tensor {name} (shape {expected[name]}) is missing")
        elif tensors[name].dtype not in DTYPES and not MASK.fullmatch(name):
            problems.append(f"{name}: expected {' or '.join(DTYPES)}, got {tensors[name].dtype}")
        elif expected.get(name, tensors[name].shape) != tensors[name].shape:
            problems.append(f"{name}: expected shape {expected[name]}, got {tensors[name].shape}")
        elif hf.model.tied and name == names["head/kernel"] and embedding in tensors:
            head, rows = (tensors[n].read().astype(np.float32) for n in (name, embedding))
            if not np.array_equal(head, rows):
                constraint = "config.json has one for both (tie_word_embeddings)"
                problems.append(f"{name} differs from {embedding}; {constraint}")
        elif MASK.fullmatch(name):
            if not _is_causal_mask(tensors[name].read()):
                problems.append(f"{name} is not the causal mask, and our model has no other")
        elif FREQUENCIES.fullmatch(name) and hf.model.positions == "rope":
            if not np.allclose(tensors[name].read(), rotary_frequencies(hf.model), rtol=1e-2):
                problems.append(f"{name} has other frequencies than config.json")
        elif name not in expected:
            problems.append(f"tensor {name} is not part of this model")
    return problems


def _is_causal_mask(array: np.ndarray) -> bool:
    """Lower triangular, [1, 1, T, T]; or the score of a masked position, low enough to be one."""
    if array.size == 1:
        return bool(array.item() <= -1e4)
    return array.shape[:2] == (1, 1) and np.array_equal(array[0, 0], np.tri(array.shape[-1]))


def _wrong_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> list[str]:
    size, remedy = tokenizer.vocab_size, "fetch the tokenizer that belongs to the model"
    if 0 <= vocab_size - size <= min(MOST_PADDING, vocab_size // 2):
        return []
    how = "is smaller" if size > vocab_size else "is far larger"
    constraint = f"{how} than the {size} ids of {tokenizer.name} beside it"
    return [str(Problem("vocab_size", vocab_size, constraint, remedy))]


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder of transformers; ConfigError if it has none that we can read."""
    names = [name for name in ("tokenizer.model", "tokenizer.json") if (folder / name).exists()]
    contents = {name: read_regular(folder / name, LARGEST_TOKENIZER) for name in names}
    if len(names) == 2 and not is_plain_unigram(contents[names[0]]):
        names.reverse()  # the .model of Llama 2 has no equal tokenizer.json that we could export
    if names:
        tokenizer = tokenizer_from_bytes(names[0], contents[names[0]])
        return BytesTokenizer() if _is_bytes(tokenizer) else tokenizer
    older = [folder / "vocab.json", folder / "merges.txt"]  # of GPT-2 and OPT
    if not all(file.exists() for file in older):
        files = "tokenizer.json, tokenizer.model, or vocab.json and merges.txt"
        raise ConfigError([f"{folder} has no tokenizer: {files}"], "import")
    for file in older:
        check_size(file, size_of_regular(file), LARGEST_TOKENIZER)
    try:
        vocabulary = json.loads(older[0].read_bytes())
        end = next((name for name in ENDS if name in vocabulary), ENDS[0])
        content = byte_level(models.BPE.from_file(*map(str, older)), end)
    except Exception as error:  # the library has no class of its own
        problem = f"vocab.json and merges.txt in {folder} are damaged: {error}"
        raise ConfigError([problem], "import") from None
    return tokenizer_from_bytes("tokenizer.json", content)


def _is_bytes(tokenizer: Tokenizer) -> bool:
    if tokenizer.file != "tokenizer.json":
        return False
    fields, ours = json.loads(tokenizer.content), json.loads(byte_tokenizer())
    return all(fields.get(part) == ours[part] for part in ("model", "pre_tokenizer", "normalizer"))


def _folder(source: str, revision: str | None) -> tuple[Path, str | None]:
    """The folder of that name, or a download of the hub's files and its commit."""
    if (folder := Path(source).expanduser()).is_dir():
        if revision:
            constraint = f"is of the hub, but {source} is a folder here"
            raise ConfigError([Problem("revision", revision, constraint, "leave it out")], "import")
        return folder, None
    try:
        files = huggingface_hub.snapshot_download(
            source, revision=revision, allow_patterns=HUB_FILES
        )
    except Exception as error:  # of many kinds: no network, no such name, no access
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        problem = f"{source} is not a folder here, and the hub did not provide it: {reason}"
        raise ConfigError([problem], "import") from None
    return Path(files), Path(files).name  # the cache has a folder for each commit
