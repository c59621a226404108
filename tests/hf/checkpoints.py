"""Tiny checkpoints in the form of transformers, the same on every machine."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from gpt_pjit.config import ModelConfig
from gpt_pjit.core.tokens import BytesTokenizer
from gpt_pjit.hf.exporting import tokenizer_files, write_tensors
from gpt_pjit.hf.models import HFModel, parameters, to_json

TRAINED, LONGEST = 24, 96  # contexts: what the config says of training, and what may be asked for
VOCABULARY = 264  # 257 ids of bytes, and padding
N_TOKENS, N_NEW = 64, 32
SOME = slice(7, None, 8)  # the places whose logits are kept
REFERENCE = Path(__file__).parent / "reference.npz"


SIZES = {"n_layers": 2, "n_heads": 4, "d_model": 32, "d_ff": 96, "vocab_size": VOCABULARY}
SIX, TWELVE = {"n_heads": 6, "d_model": 96}, {"n_heads": 12, "d_model": 96}
LEARNED: dict[str, Any] = {"positions": "learned", "bias": "all"}
ROPE: dict[str, Any] = {"positions": "rope", "tied": False}
LLAMA: dict[str, Any] = ROPE | {"norm": "rms", "activation": "swiglu"}
QWEN2 = LLAMA | {"bias": "qkv", "norm_epsilon": 1e-6}
QWEN3 = LLAMA | {"qk_norm": True, "norm_epsilon": 1e-6}
NEOX = ROPE | {"bias": "all", "rope_fraction": 0.25}


def _model(name: str, length: int, **fields: Any) -> HFModel:
    return HFModel(name, ModelConfig(**SIZES | fields), length)


MODELS = {
    "mpt-4": _model("mpt", TRAINED, d_ff=128),
    "mpt-6": _model("mpt", TRAINED, d_ff=384, **SIX),
    "mpt-12": _model("mpt", TRAINED, d_ff=384, **TWELVE),
    "gpt2": _model("gpt2", LONGEST, **LEARNED, activation="gelu_tanh"),
    "gpt2-erf": _model("gpt2", LONGEST, **LEARNED),
    "gpt2-untied": _model("gpt2", LONGEST, **LEARNED, activation="gelu_tanh", tied=False),
    "opt": _model("opt", LONGEST, **LEARNED, activation="relu"),
    "neox": _model("gpt_neox", TRAINED, **NEOX, parallel_residual=True),
    "neox-6-serial": _model("gpt_neox", TRAINED, **NEOX | {"rope_fraction": 0.5}, **SIX),
    "llama-4-2": _model(
        "llama", TRAINED, **LLAMA, n_kv_heads=2, rope_scaling=(8.0, 1.0, 4.0, TRAINED)
    ),
    "llama-6": _model("llama", TRAINED, **LLAMA | {"tied": True}, **SIX),
    "llama-12-1": _model("llama", TRAINED, **LLAMA, **TWELVE, n_kv_heads=1, rope_theta=500.0),
    "qwen2-4": _model("qwen2", TRAINED, **QWEN2),
    "qwen2-6-2": _model("qwen2", TRAINED, **QWEN2 | {"tied": True}, **SIX, n_kv_heads=2),
    "qwen3-12-2": _model("qwen3", TRAINED, **QWEN3, **TWELVE, n_kv_heads=2, head_size=16),
    "qwen3-4-1": _model("qwen3", TRAINED, **QWEN3 | {"tied": True}, n_kv_heads=1),
}


def write_checkpoint(folder: Path, name: str) -> Path:
    """A folder of the model `name`, with weights large enough for attention to matter."""
    hf_model = MODELS[name]
    folder.mkdir(parents=True)
    config = to_json(hf_model, LONGEST, BytesTokenizer.eot_id, "float32")
    (folder / "config.json").write_text(json.dumps(config))
    for file, content in tokenizer_files(BytesTokenizer(), LONGEST).items():
        (folder / file).write_bytes(content)
    table = list(parameters(hf_model))
    shapes = {name: p.their_shape for p in table for name in p.names}
    write_weights(folder, {name: _weights(name, shape) for name, shape in shapes.items()})
    return folder


def write_weights(folder: Path, tensors: dict[str, np.ndarray], **settings: Any) -> None:
    sizes = {name: array.size for name, array in tensors.items()}
    write_tensors(folder, sizes, iter(tensors.items()), "float32", **settings)


def some_tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 257, (2, N_TOKENS), np.int32)


def _weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
    seed = int.from_bytes(name.encode()[-8:], "little") + sum(name.encode())
    draws = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    if len(shape) == 2:
        return draws * np.float32(0.2)
    return draws * np.float32(0.1) + np.float32(name.endswith("weight"))  # gains are around 1
