"""Tiny checkpoints in the form of transformers, the same on every machine."""

from __future__ import annotations

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


def _mpt(n_heads: int, d_model: int) -> HFModel:
    model = ModelConfig(
        n_layers=2, n_heads=n_heads, d_model=d_model, d_ff=4 * d_model, vocab_size=VOCABULARY
    )
    return HFModel("mpt", model, TRAINED)


def _gpt2(activation: str) -> HFModel:
    model = ModelConfig(
        n_layers=2,
        n_heads=4,
        d_model=32,
        d_ff=96,
        vocab_size=VOCABULARY,
        positions="learned",
        activation=activation,
        bias="all",
    )
    return HFModel("gpt2", model, LONGEST)


MODELS = {
    "mpt-4": _mpt(4, 32),
    "mpt-6": _mpt(6, 96),
    "mpt-12": _mpt(12, 96),
    "gpt2": _gpt2("gelu_tanh"),
    "gpt2-erf": _gpt2("gelu"),
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
