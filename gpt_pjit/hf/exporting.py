"""A checkpoint as a folder that transformers, and whatever reads its format, loads unaided."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from google.protobuf.message import DecodeError
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.numpy import save_file
from sentencepiece import sentencepiece_model_pb2 as proto
from tokenizers import decoders, models, normalizers

from gpt_pjit.checkpoint_arrays import fingerprint, new_folder, origins, read_parameter
from gpt_pjit.config import Config
from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.core.files import write_json
from gpt_pjit.core.model import param_shapes
from gpt_pjit.core.runtime import has_begun, read_run
from gpt_pjit.core.sharding import paths_and_leaves
from gpt_pjit.core.tokens import END_OF_TEXT, Tokenizer, tokens_before, walks_of
from gpt_pjit.evaluate import ModelResults, results_table
from gpt_pjit.hf.folding import fold, folded_config
from gpt_pjit.hf.models import HFModel, Parameter, byte_tokenizer, hf_model, parameters, to_json
from gpt_pjit.trained import find_checkpoint, run_tokenizer

LONGEST = 4  # times the trained context: the default of ALiBi exports
POSITIONS = {"alibi": "ALiBi", "learned": "learned", "rope": "rotary"}
SHARD_BYTES = 10**9  # of a file of weights, which is in memory until it is written
SPACE = "\u2581"  # sentencepiece's sign
NamedTensors = Iterator[tuple[str, np.ndarray]]
NOT_TEXT = -1e6  # the score of control pieces: spelling them out is always likelier

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


def export(
    checkpoint: Path,
    out: Path,
    *,
    dtype: str,
    max_length: int | None = None,
    results: ModelResults | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Writes `checkpoint`, a workdir or one step of it, into the new folder `out`; says what.

    Raises ConfigError, and writes nothing, where transformers has no such model, the weights are
    not finite, or `results` are those of another checkpoint. Holds one file of weights in memory,
    and one array of the checkpoint.
    """
    workdir, step = find_checkpoint(checkpoint)
    if results:
        _check_results(results, workdir, step)
    config, run = read_run(workdir)
    tokenizer = run_tokenizer(workdir, run)
    length = config.data.sequence_length
    hf = hf_model(folded_config(config.model), length)
    longest = max_length or length * (LONGEST if hf.model.positions == "alibi" else 1)
    if hf.model.positions == "learned" and longest != length:
        constraint = f"learned positions are for exactly {length} tokens"
        problem = Problem("max_length", max_length, constraint, "leave it out")
        raise ConfigError([problem], "export")
    fields = to_json(hf, longest, tokenizer.eot_id, dtype)
    ids = {name: value for name, value in fields.items() if name.endswith("_token_id")}
    table = list(parameters(hf))
    sizes = {name: math.prod(p.their_shape) for p in table for name in p.names}
    n_params = sum(sizes.values())
    family = fields["architectures"][0]
    title = f"# {out.resolve().name}\n\nA GPT of {n_params:,} parameters, as `{family}`"
    trained = tokens_before(walks_of(config, run), step) if has_begun(run) else 0
    origin = history(step, trained, run.get("source"))
    card = _card(title, origin, hf, tokenizer, longest)
    if results:
        card += f"\n## Results\n\n{results_table(results)}\n"
    files = tokenizer_files(tokenizer, longest) | {"README.md": card.encode()}
    with new_folder(out) as draft:
        for name, content in files.items():
            (draft / name).write_bytes(content)
        write_json(draft / "config.json", fields)
        write_json(draft / "generation_config.json", ids)
        tensors = _tensors(workdir / "checkpoints", step, config, table)
        weights = write_tensors(draft, sizes, tensors, dtype, shard_bytes)
    record = {"folder": str(out), "family": family, "step": step, "max_length": longest}
    return record | {"n_params": n_params, "files": weights}


def _check_results(results: ModelResults, workdir: Path, step: int) -> None:
    settings = results.settings
    if settings.get("fingerprint") != fingerprint(workdir / "checkpoints", step):
        other = f"step {settings.get('step')} of {settings.get('checkpoint')}"
        problem = f"{results.origin} has the results of another checkpoint, {other}"
        raise ConfigError([problem], "--results")


def _tensors(directory: Path, step: int, config: Config, table: list[Parameter]) -> NamedTensors:
    """The name and content of their tensors; one array of ours is in memory at a time."""
    own = dict(paths_and_leaves(param_shapes(config.model, config.data.sequence_length)))
    for p in table:
        if p.path in own:
            array = read_parameter(directory, step, p.path, own[p.path])
        else:  # a bias that our model does without
            array = np.zeros(p.shape, np.float32)
        if not np.isfinite(array).all():
            problem = f"step {step} of {directory.parent} holds NaN or infinity in {p.path}"
            raise ConfigError([problem], "export")
        fold(config.model, p.path, array)
        for name, part in p.parts(array):
            yield name, p.theirs(part)
        del array, part  # before the next one is read


def write_tensors(
    folder: Path,
    sizes: dict[str, int],
    tensors: NamedTensors,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> tuple[str, ...]:
    """Writes named tensors, of `sizes` elements, as files of about `shard_bytes`; their names."""
    split = split_state_dict_into_shards_factory(
        {name: size * np.dtype(dtype).itemsize for name, size in sizes.items()},
        get_storage_size=lambda size: size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    shards: dict[str, dict[str, np.ndarray]] = {file: {} for file in split.filename_to_tensors}
    for name, tensor in tensors:
        file = split.tensor_to_filename[name]
        # A copy: the library takes the memory as it lies, and a view would keep all layers alive.
        shards[file][name] = np.array(tensor, dtype, order="C")
        del tensor
        if len(shards[file]) == len(split.filename_to_tensors[file]):
            save_file(shards.pop(file), folder / file, metadata={"format": "pt"})
    assert not shards, f"tensors are missing in {', '.join(shards)}"
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)
    return tuple(split.filename_to_tensors)


def _card(title: str, origin: str, hf: HFModel, tokenizer: Tokenizer, max_length: int) -> str:
    """README.md; `origin` says where the weights come from."""
    c = hf.model
    vocabulary = f"The vocabulary is that of {tokenizer.name}, {tokenizer.vocab_size:,} tokens"
    if (padding := c.vocab_size - tokenizer.vocab_size) > 0:
        vocabulary += f", and {padding:,} rows of padding, which were never a target in training"
    return f"""\
---
library_name: transformers
pipeline_tag: text-generation
---

{title}: {c.n_layers} layers, {c.n_heads} heads, width {c.d_model:,}, \
{POSITIONS[c.positions]} positions. {origin}

Trained on contexts of {hf.sequence_length:,} tokens; this export takes up to {max_length:,} \
(`{hf.family.longest}`). {vocabulary}; each document ended with id {tokenizer.eot_id}.

{USE}
"""


def history(step: int, tokens: int, source: dict[str, Any] | None) -> str:
    """Where the weights of `step` come from; `source` is that of run.json, if there is one."""
    trained = f"Trained with gpt_pjit for {step:,} steps, {tokens:,} tokens." if step else ""
    made = f"Origin of the weights, latest first: {'; '.join(origins(source))}." if source else ""
    return f"{trained} {made}".strip()


def tokenizer_files(tokenizer: Tokenizer, max_length: int) -> dict[str, bytes]:
    """Name and content of each file, for `AutoTokenizer`; a text has the same ids as here.

    Raises ConfigError for a sentencepiece model that has no equal there.
    """
    eot: str | None = END_OF_TEXT
    if tokenizer.file == "tokenizer.json":
        eot = tokenizers.Tokenizer.from_buffer(tokenizer.content).id_to_token(tokenizer.eot_id)
        files = {tokenizer.file: _text_only(tokenizer.content)}
    elif tokenizer.file == "tokenizer.model":
        model = _unigram(tokenizer.content)
        eot = model.id_to_token(tokenizer.eot_id)
        content = model.to_str(pretty=True).encode()
        files = {"tokenizer.json": content, tokenizer.file: tokenizer.content}
    else:
        files = {"tokenizer.json": byte_tokenizer()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": eot,
        "eos_token": eot,
        "pad_token": eot,
        "unk_token": eot,  # never occurs; some runtimes require one
        "padding_side": "left",  # generation continues the last token of each row
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,  # decoding gives back the exact text
    }
    return files | {"tokenizer_config.json": json.dumps(settings, indent=2).encode()}


def _text_only(content: bytes) -> bytes:
    """A tokenizer.json without what cuts texts or adds tokens; ByteLevel does neither."""
    fields = json.loads(content)
    parts = [name for name in ("truncation", "padding", "post_processor") if fields.get(name)]
    others = [name for name in parts if fields[name].get("type") != "ByteLevel"]
    return json.dumps(fields | dict.fromkeys(others)).encode() if others else content


def is_plain_unigram(content: bytes) -> bool:
    """Whether a sentencepiece model is a unigram that normalises nothing."""
    try:
        spec = proto.ModelProto.FromString(content)  # type: ignore[attr-defined]
    except DecodeError:
        return False
    trainer, plain = spec.trainer_spec, spec.normalizer_spec
    changes = plain.precompiled_charsmap or plain.add_dummy_prefix or plain.remove_extra_whitespaces
    return trainer.model_type == trainer.UNIGRAM and not changes


def _unigram(content: bytes) -> tokenizers.Tokenizer:
    """From a sentencepiece unigram model that normalises nothing, as `train_tokenizer` makes."""
    if not is_plain_unigram(content):
        problem = "only a sentencepiece unigram that normalises nothing has an equal tokenizer.json"
        raise ConfigError([problem], "export")
    spec = proto.ModelProto.FromString(content)  # type: ignore[attr-defined]
    trainer = spec.trainer_spec
    kinds = proto.ModelProto.SentencePiece  # type: ignore[attr-defined]
    text = (kinds.NORMAL, kinds.USER_DEFINED)
    pieces = [(p.piece, p.score if p.type in text else NOT_TEXT) for p in spec.pieces]
    model = tokenizers.Tokenizer(models.Unigram(pieces, trainer.unk_id, trainer.byte_fallback))
    model.normalizer = normalizers.Replace(" ", SPACE)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    model.decoder = decoders.Sequence(steps)
    model.add_special_tokens([spec.pieces[trainer.eos_id].piece])
    return model
