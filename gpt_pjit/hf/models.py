"""A model here and in transformers: its config.json, and the name and layout of each parameter."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from gpt_pjit.config import ModelConfig
from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.core.model import NORM_EPSILON, param_shapes
from gpt_pjit.core.parameters import gpt_dimensions
from gpt_pjit.core.sharding import match_rules, paths_and_leaves, values

CLASSES = {"mpt": "MptForCausalLM", "gpt2": "GPT2LMHeadModel"}
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
        "attn_config.alibi": True,
        "attn_config.alibi_bias_max": 8,
        "attn_config.clip_qkv": None,
        "attn_config.softmax_scale": None,
        "attn_config.prefix_lm": False,
        "attn_config.qk_ln": False,
        "attn_config.attn_type": "multihead_attention",
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
ACTIVATIONS = {  # of GPT-2
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
}


# Their parameters: our path, their name with {} for the layer, and the letters of their dimensions;
# letters that stand together are merged. V vocabulary, T positions, D model, C query, key and
# value, H heads, K head size, F feed-forward.
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


def family_of(c: ModelConfig) -> str:
    """The `model_type` of the class that computes the same; ConfigError if there is none."""
    if c.positions == "learned":
        return "gpt2"
    problems = []
    if c.positions != "alibi":
        problems.append(Problem("model.positions", c.positions, *_no_class("alibi or learned")))
    if c.bias:
        problems.append(Problem("model.bias", c.bias, *_no_class("False, or learned positions")))
    if c.activation != "gelu":
        problems.append(Problem("model.activation", c.activation, *_no_class("gelu")))
    if c.d_ff != MPT_WIDENING * c.d_model:
        problems.append(Problem("model.d_ff", c.d_ff, *_no_class(f"4 x {c.d_model}")))
    if problems:
        raise ConfigError(problems, "export")
    return "mpt"


def _no_class(needed: str) -> tuple[str, str]:
    return "no class of transformers supports this", f"an export needs {needed}"


def to_json(hf: HFModel, max_length: int, eot_id: int, dtype: str) -> dict[str, Any]:
    """The config.json, for contexts up to `max_length`."""
    c = hf.model
    grouped: dict[str, Any] = {}
    for name, value in FIXED[hf.family].items():
        group, _, inner = name.rpartition(".")
        (grouped.setdefault(group, {}) if group else grouped)[inner] = value
    sizes = (c.n_layers, c.n_heads, c.d_model, c.vocab_size, max_length)
    fields = {
        "architectures": [CLASSES[hf.family]],
        "model_type": hf.family,
        **dict(zip(SIZES[hf.family], sizes, strict=True)),
        **grouped,
        "dtype": dtype,
        "torch_dtype": dtype,  # the name of older versions
        "use_cache": True,
        "bos_token_id": eot_id,
        "eos_token_id": eot_id,
        "pad_token_id": eot_id,
        TRAINED_LENGTH: hf.sequence_length,
    }
    if hf.family == "gpt2":
        fields["n_inner"] = c.d_ff
        fields["activation_function"] = {"gelu_tanh": "gelu_new", "gelu": "gelu"}[c.activation]
        # Their default is 0.1; MPT's is 0, and as an attn_pdrop it takes no fraction.
        fields["resid_pdrop"] = c.dropout_residual
        fields["attn_pdrop"] = c.dropout_attention
        fields["embd_pdrop"] = c.dropout_embedding
    return fields


def from_json(fields: dict[str, Any], source: str) -> HFModel:
    """The model of a config.json; ConfigError with everything that ours does not support."""
    family = fields.get("model_type")
    if not isinstance(family, str) or family not in CLASSES:
        known = ", ".join(CLASSES)
        raise ConfigError([Problem("model_type", family, "unknown", f"known: {known}")], source)
    problems = [
        Problem(name, got, f"our model supports only {expected!r}", "choose another model")
        for name, expected in FIXED[family].items()
        if (got := _field(fields, name, expected)) != expected
    ]
    optional = [name for name in ("n_inner", TRAINED_LENGTH) if fields.get(name) is not None]
    problems += [
        Problem(name, fields.get(name), "must be a positive integer", "fix the file")
        for name in (*SIZES[family], *optional)
        if type(fields.get(name)) is not int or fields[name] < 1
    ]
    activation = fields.get("activation_function", "gelu_new") if family == "gpt2" else "gelu"
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        remedy = f"known: {', '.join(ACTIVATIONS)}"
        problems.append(Problem("activation_function", activation, "unknown", remedy))
    sizes: list[Any] = [fields.get(name) for name in SIZES[family]]
    if not problems and sizes[2] % sizes[1]:
        width, heads = SIZES[family][2], f"{SIZES[family][1]}={sizes[1]}"
        problems.append(Problem(width, sizes[2], f"must be divisible by {heads}", "fix the file"))
    if problems:
        raise ConfigError(problems, source)
    n_layers, n_heads, d_model, vocab_size, length = sizes
    model = ModelConfig(
        n_layers=n_layers,
        n_heads=n_heads,
        d_model=d_model,
        d_ff=fields.get("n_inner") or MPT_WIDENING * d_model,
        vocab_size=vocab_size,
        dtype=_dtype(fields),
        positions="learned" if family == "gpt2" else "alibi",
        activation=ACTIVATIONS[activation],
        bias=family == "gpt2",
    )
    trained = length if family == "gpt2" else fields.get(TRAINED_LENGTH) or length
    return HFModel(family, model, trained)


def _dtype(fields: dict[str, Any]) -> str:
    """That of the weights if our model has it; float16 is computed in float32."""
    theirs = fields.get("dtype") or fields.get("torch_dtype")  # the name of older versions
    return "bfloat16" if theirs == "bfloat16" else "float32"


def _field(fields: dict[str, Any], name: str, default: Any) -> Any:
    group, _, inner = name.rpartition(".")
    inside = (fields.get(group) or {}) if group else fields
    return inside.get(inner, default) if isinstance(inside, dict) else inside


@dataclass(frozen=True)
class Parameter:
    """An array of ours and the names of theirs: one, or one for each layer if it is stacked."""

    path: str
    shape: jax.ShapeDtypeStruct
    names: tuple[str, ...]
    letters: str  # of one layer of ours
    their_letters: str

    def theirs(self, array: np.ndarray) -> np.ndarray:
        """One layer of ours in their layout, a view if possible."""
        order = [self.letters.index(letter) for letter in self.their_letters.replace(" ", "")]
        return array.transpose(order).reshape(self.their_shape)

    def ours(self, array: np.ndarray) -> np.ndarray:
        """One of their tensors as a layer of ours."""
        merged = self.their_letters.replace(" ", "")
        split = array.reshape([self._sizes[letter] for letter in merged])
        return split.transpose([merged.index(letter) for letter in self.letters])

    @property
    def their_shape(self) -> tuple[int, ...]:
        groups = self.their_letters.split()
        return tuple(math.prod(self._sizes[x] for x in group) for group in groups)

    @property
    def stacked(self) -> bool:
        return len(self.shape.shape) > len(self.letters)

    @property
    def _sizes(self) -> dict[str, int]:
        sizes = self.shape.shape[1:] if self.stacked else self.shape.shape
        return dict(zip(self.letters, sizes, strict=True))


def parameters(family: str, c: ModelConfig, sequence_length: int) -> Iterator[Parameter]:
    """Every parameter of a model of `family` with the sizes of `c`, in the order of the table."""
    c = replace(c, bias=family == "gpt2")  # GPT-2 always has biases
    shapes = param_shapes(c, sequence_length)
    rules = gpt_dimensions(c)
    letters = dict(paths_and_leaves(values(match_rules(rules, shapes))))
    leaves = dict(paths_and_leaves(shapes))
    for path, name, their_letters in PARAMETERS[family]:
        names = tuple(name.format(i) for i in range(c.n_layers)) if "{}" in name else (name,)
        yield Parameter(path, leaves[path], names, letters[path].removeprefix("L"), their_letters)
