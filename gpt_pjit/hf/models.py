"""A model here and in transformers: settings, names and layouts, and the tokenizer of bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tokenizers
from flax.traverse_util import flatten_dict
from tokenizers import decoders, models, pre_tokenizers

from gpt_pjit.config import FIXED_BY_WEIGHTS, ModelConfig
from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.core.model import param_shapes
from gpt_pjit.core.parameters import gpt_dimensions
from gpt_pjit.core.sharding import match_rules, paths_and_leaves, values
from gpt_pjit.core.tokens import END_OF_TEXT

CLASSES = {"mpt": "MptForCausalLM", "gpt2": "GPT2LMHeadModel"}
NORM_EPSILON = ModelConfig().norm_epsilon
TRAINED_LENGTH = "trained_sequence_length"  # a field of our own, which transformers ignores
MPT_WIDENING = 4  # d_ff / d_model, fixed in the code of transformers

# Settings for which our model has only one value, which is also the default of transformers.
FIXED: dict[str, dict[str, Any]] = {
    "mpt": {
        "layer_norm_epsilon": NORM_EPSILON,
        "no_bias": True,
        "expansion_ratio": MPT_WIDENING,
        "logit_scale": None,
        "tie_word_embeddings": True,
        "attn_config": {
            "alibi": True,
            "alibi_bias_max": 8,
            "clip_qkv": None,
            "softmax_scale": None,
            "prefix_lm": False,
            "qk_ln": False,
            "attn_type": "multihead_attention",
        },
    },
    "gpt2": {
        "layer_norm_epsilon": NORM_EPSILON,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
}
SIZES = {
    "mpt": ("n_layers", "n_heads", "d_model", "vocab_size", "max_seq_len"),
    "gpt2": ("n_layer", "n_head", "n_embd", "vocab_size", "n_positions"),
}
TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")  # what GPT-2 calls it
ACTIVATIONS = {"gelu": "gelu"} | dict.fromkeys(TANH, "gelu_tanh")

# Their parameters: our path, their name with {} for the layer, and the letters of their dimensions;
# letters that stand together are merged. `core/parameters.py` says what each letter is.
MPT: tuple[tuple[str, str, str], ...] = (
    ("embed/embedding", "transformer.wte.weight", "V D"),
    ("blocks/norm_attention/scale", "transformer.blocks.{}.norm_1.weight", "D"),
    ("blocks/attention/qkv/kernel", "transformer.blocks.{}.attn.Wqkv.weight", "CHK D"),
    ("blocks/attention/out/kernel", "transformer.blocks.{}.attn.out_proj.weight", "D HK"),
    ("blocks/norm_mlp/scale", "transformer.blocks.{}.norm_2.weight", "D"),
    ("blocks/mlp/up/kernel", "transformer.blocks.{}.ffn.up_proj.weight", "F D"),
    ("blocks/mlp/down/kernel", "transformer.blocks.{}.ffn.down_proj.weight", "D F"),
    ("norm_final/scale", "transformer.norm_f.weight", "D"),
)
GPT2: tuple[tuple[str, str, str], ...] = (
    ("embed/embedding", "transformer.wte.weight", "V D"),
    ("positions/embedding", "transformer.wpe.weight", "T D"),
    ("blocks/norm_attention/scale", "transformer.h.{}.ln_1.weight", "D"),
    ("blocks/norm_attention/bias", "transformer.h.{}.ln_1.bias", "D"),
    ("blocks/attention/qkv/kernel", "transformer.h.{}.attn.c_attn.weight", "D CHK"),
    ("blocks/attention/qkv/bias", "transformer.h.{}.attn.c_attn.bias", "CHK"),
    ("blocks/attention/out/kernel", "transformer.h.{}.attn.c_proj.weight", "HK D"),
    ("blocks/attention/out/bias", "transformer.h.{}.attn.c_proj.bias", "D"),
    ("blocks/norm_mlp/scale", "transformer.h.{}.ln_2.weight", "D"),
    ("blocks/norm_mlp/bias", "transformer.h.{}.ln_2.bias", "D"),
    ("blocks/mlp/up/kernel", "transformer.h.{}.mlp.c_fc.weight", "D F"),
    ("blocks/mlp/up/bias", "transformer.h.{}.mlp.c_fc.bias", "F"),
    ("blocks/mlp/down/kernel", "transformer.h.{}.mlp.c_proj.weight", "F D"),
    ("blocks/mlp/down/bias", "transformer.h.{}.mlp.c_proj.bias", "D"),
    ("norm_final/scale", "transformer.ln_f.weight", "D"),
    ("norm_final/bias", "transformer.ln_f.bias", "D"),
)
PARAMETERS = {"mpt": MPT, "gpt2": GPT2}


@dataclass(frozen=True)
class HFModel:
    """A model of transformers: its `model_type`, its parts, and the length it was trained on."""

    family: str
    model: ModelConfig
    sequence_length: int


def hf_model(c: ModelConfig, sequence_length: int) -> HFModel:
    """The model of the class that computes the same; ConfigError if there is none."""
    family = "gpt2" if c.positions == "learned" else "mpt"
    own = ["n_layers", "n_heads", "d_model", "vocab_size"]
    own += ["positions", "d_ff", "bias"] if family == "gpt2" else []
    own += ["activation"] if family == "gpt2" and c.activation in ACTIVATIONS.values() else []
    needed = replace(
        ModelConfig(d_ff=MPT_WIDENING * c.d_model), **{name: getattr(c, name) for name in own}
    )
    problems = [
        Problem(field, was, "no class of transformers supports this", f"needs {value!r}")
        for field in FIXED_BY_WEIGHTS
        for name in [field.removeprefix("model.")]
        if (was := getattr(c, name)) != (value := getattr(needed, name))
    ]
    if problems:
        way_on = "to train on from its weights here, copy them: gpt_pjit checkpoint grow RUN"
        raise ConfigError([*problems, f"{way_on} --layers={c.n_layers} --out=NEW"], "export")
    return HFModel(family, c, sequence_length)


def to_json(hf: HFModel, max_length: int, eot_id: int, dtype: str) -> dict[str, Any]:
    """The config.json, for contexts up to `max_length`."""
    c = hf.model
    sizes = (c.n_layers, c.n_heads, c.d_model, c.vocab_size, max_length)
    fields = {
        "architectures": [CLASSES[hf.family]],
        "model_type": hf.family,
        **dict(zip(SIZES[hf.family], sizes, strict=True)),
        **FIXED[hf.family],
        "dtype": dtype,
        "torch_dtype": dtype,  # the name of older versions
        "use_cache": True,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), eot_id),
        TRAINED_LENGTH: hf.sequence_length,
    }
    if hf.family == "gpt2":
        fields |= {
            "n_inner": c.d_ff,
            "activation_function": TANH[0] if c.activation == "gelu_tanh" else c.activation,
            # Their default is 0.1; MPT's is 0, and as an attn_pdrop it takes no fraction.
            "resid_pdrop": c.dropout_residual,
            "attn_pdrop": c.dropout_attention,
            "embd_pdrop": c.dropout_embedding,
        }
    return fields


def from_json(fields: dict[str, Any], source: str) -> HFModel:
    """The model of a config.json; ConfigError with everything that ours does not support."""
    family = fields.get("model_type")
    if family not in tuple(CLASSES):
        remedy = f"known: {', '.join(CLASSES)}"
        raise ConfigError([Problem("model_type", family, "unknown", remedy)], source)
    settings = flatten_dict(fields, sep=".")
    problems = [
        Problem(name, settings[name], f"our model supports only {only!r}", "choose another model")
        for name, only in flatten_dict(FIXED[family], sep=".").items()
        if settings.get(name, only) != only
    ]
    optional = [name for name in ("n_inner", TRAINED_LENGTH) if fields.get(name) is not None]
    problems += [
        Problem(name, fields.get(name), "must be a positive integer", "fix the file")
        for name in (*SIZES[family], *optional)
        if type(fields.get(name)) is not int or fields[name] < 1
    ]
    activation = fields.get("activation_function", "gelu_new") if family == "gpt2" else "gelu"
    if activation not in tuple(ACTIVATIONS):
        remedy = f"known: {', '.join(ACTIVATIONS)}"
        problems.append(Problem("activation_function", activation, "unknown", remedy))
    if problems:
        raise ConfigError(problems, source)
    n_layers, n_heads, d_model, vocab_size, length = (fields[name] for name in SIZES[family])
    if d_model % n_heads:
        heads, width = SIZES[family][1:3]
        constraint = f"must be divisible by {heads}={n_heads}"
        raise ConfigError([Problem(width, d_model, constraint, "fix the file")], source)
    # bfloat16 if the weights are; float16 is computed in float32.
    theirs = fields.get("dtype") or fields.get("torch_dtype")
    model = ModelConfig(
        n_layers=n_layers,
        n_heads=n_heads,
        d_model=d_model,
        d_ff=fields.get("n_inner") or MPT_WIDENING * d_model,
        vocab_size=vocab_size,
        dtype="bfloat16" if theirs == "bfloat16" else "float32",
        positions="learned" if family == "gpt2" else "alibi",
        activation=ACTIVATIONS[activation],
        bias="all" if family == "gpt2" else "none",
    )
    trained = length if family == "gpt2" else fields.get(TRAINED_LENGTH) or length
    return HFModel(family, model, trained)


@dataclass(frozen=True)
class Parameter:
    """An array of ours and the names of theirs: one, or one for each layer if it is stacked."""

    path: str
    shape: tuple[int, ...]
    stacked: bool
    names: tuple[str, ...]
    sizes: dict[str, int]  # of the dimensions of one layer of ours, by letter, in order
    their_letters: str

    def theirs(self, array: np.ndarray) -> np.ndarray:
        """One layer of ours in their layout, a view if possible."""
        order = [[*self.sizes].index(letter) for letter in self._their_order]
        return array.transpose(order).reshape(self.their_shape)

    def ours(self, array: np.ndarray) -> np.ndarray:
        """One of their tensors as a layer of ours."""
        split = array.reshape([self.sizes[letter] for letter in self._their_order])
        return split.transpose([self._their_order.index(letter) for letter in self.sizes])

    @property
    def their_shape(self) -> tuple[int, ...]:
        groups = self.their_letters.split()
        return tuple(math.prod(self.sizes[letter] for letter in group) for group in groups)

    @property
    def _their_order(self) -> str:
        return self.their_letters.replace(" ", "")


def parameters(hf: HFModel) -> Iterator[Parameter]:
    """Every parameter of the model, in the order of the table."""
    c = replace(hf.model, bias="all" if hf.family == "gpt2" else "none")  # GPT-2 always has biases
    shapes = param_shapes(c, hf.sequence_length)
    letters = dict(paths_and_leaves(values(match_rules(gpt_dimensions(c), shapes))))
    leaves = dict(paths_and_leaves(shapes))
    for path, name, their_letters in PARAMETERS[hf.family]:
        shape = leaves[path].shape
        sizes = dict(zip(letters[path], shape, strict=True))
        n_layers = sizes.pop("L", None)
        names = (name,) if n_layers is None else tuple(name.format(i) for i in range(n_layers))
        yield Parameter(path, shape, n_layers is not None, names, sizes, their_letters)


def byte_tokenizer() -> bytes:
    """A tokenizer.json with ids 0 to 255 for the bytes and 256 for end-of-text."""
    # GPT-2 writes a visible byte as itself, and the others as the characters from 256 on.
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    visible = {ord(c): c for c in characters if ord(c) < 256}
    others = iter(characters[len(visible) :])
    vocabulary = {visible.get(byte) or next(others): byte for byte in range(256)}
    return byte_level(models.BPE(vocabulary, []), use_regex=False)


def byte_level(model: models.Model, **options: bool) -> bytes:
    """The tokenizer.json of a byte-level `model`."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, **options)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer.to_str(pretty=True).encode()
