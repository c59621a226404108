"""What a model is, in our config and in the config.json of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpt_pjit.config import ModelConfig
from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.core.model import NORM_EPSILON

CLASSES = {"mpt": "MptForCausalLM", "gpt2": "GPT2LMHeadModel"}
TRAINED_LENGTH = "trained_sequence_length"  # a field of our own; transformers keeps and ignores it
MPT_WIDENING = 4  # of the feed-forward layer, fixed in transformers' code

# Their settings that our model has no other value of, with the default of transformers.
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


@dataclass(frozen=True)
class Form:
    """A model as transformers has it: its family, its parts, and the length it was trained at."""

    family: str
    model: ModelConfig
    sequence_length: int


def family_of(c: ModelConfig) -> str:
    """Which class of transformers computes the same; ConfigError if none does."""
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
    return "no class of transformers has this", f"an export needs {needed}"


def to_json(form: Form, max_length: int, eot_id: int, dtype: str) -> dict[str, Any]:
    """The config.json, for contexts up to `max_length`."""
    c = form.model
    grouped: dict[str, Any] = {}
    for name, value in FIXED[form.family].items():
        group, _, inner = name.rpartition(".")
        (grouped.setdefault(group, {}) if group else grouped)[inner] = value
    sizes = (c.n_layers, c.n_heads, c.d_model, c.vocab_size, max_length)
    fields = {
        "architectures": [CLASSES[form.family]],
        "model_type": form.family,
        **dict(zip(SIZES[form.family], sizes, strict=True)),
        **grouped,
        "dtype": dtype,
        "torch_dtype": dtype,  # the name of older versions
        "use_cache": True,
        "bos_token_id": eot_id,
        "eos_token_id": eot_id,
        "pad_token_id": eot_id,
        TRAINED_LENGTH: form.sequence_length,
    }
    if form.family == "gpt2":
        fields["n_inner"] = c.d_ff
        fields["activation_function"] = {"gelu_tanh": "gelu_new", "gelu": "gelu"}[c.activation]
        # Their default is 0.1; MPT's is 0, and as an attn_pdrop it takes no fraction.
        fields["resid_pdrop"] = c.dropout_residual
        fields["attn_pdrop"] = c.dropout_attention
        fields["embd_pdrop"] = c.dropout_embedding
    return fields


def from_json(fields: dict[str, Any], source: str) -> Form:
    """The model of a config.json; ConfigError with everything that ours cannot be."""
    family = fields.get("model_type")
    if not isinstance(family, str) or family not in CLASSES:
        known = ", ".join(CLASSES)
        raise ConfigError([Problem("model_type", family, "unknown", f"known: {known}")], source)
    problems = [
        Problem(name, got, f"our model has {expected!r} only", "choose another checkpoint")
        for name, expected in FIXED[family].items()
        if (got := _field(fields, name, expected)) != expected
    ]
    optional = [name for name in ("n_inner", TRAINED_LENGTH) if fields.get(name) is not None]
    problems += [
        Problem(name, fields.get(name), "must be a positive integer", "mend the file")
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
        problems.append(Problem(width, sizes[2], f"must be divisible by {heads}", "mend the file"))
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
    return Form(family, model, trained)


def _dtype(fields: dict[str, Any]) -> str:
    """Of the weights, and so of the computation in transformers; float32 where it is not told."""
    theirs = fields.get("dtype") or fields.get("torch_dtype")  # the name of older versions
    return "bfloat16" if theirs in ("bfloat16", "float16") else "float32"


def _field(fields: dict[str, Any], name: str, default: Any) -> Any:
    group, _, inner = name.rpartition(".")
    inside = (fields.get(group) or {}) if group else fields
    return inside.get(inner, default) if isinstance(inside, dict) else inside
