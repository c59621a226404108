"""The classes of transformers that compute what our model does: their settings and their names.

Data alone: `models.py` reads it in both directions.
"""

from dataclasses import dataclass, field
from typing import Any

Row = tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """A class of transformers beside our model."""

    cls: str
    longest: str  # what it calls the longest context
    settings: dict[str, str]  # our field of `model` for each setting of theirs
    words: dict[str, tuple]  # our fields that the class fixes: its value, then others it can hold
    # Our path; their names, with {} for the layer and [qkv] for the maps that ours joins; the
    # letters of their dimensions, those that stand together merged; and how many rows theirs has
    # before ours. `core/parameters.py` says what each letter is.
    parameters: tuple[Row, ...]
    # Settings of theirs for which our model has only one value, which is also their default.
    fixed: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)  # theirs, where a file leaves one out


MPT = Family(
    cls="MptForCausalLM",
    longest="max_seq_len",
    settings={
        "n_layers": "n_layers",
        "n_heads": "n_heads",
        "d_model": "d_model",
        "vocab_size": "vocab_size",
        "layer_norm_epsilon": "norm_epsilon",
    },
    words={"positions": ("alibi",)},
    parameters=(
        ("embed/embedding", "transformer.wte.weight", "V D"),
        ("blocks/norm_attention/scale", "transformer.blocks.{}.norm_1.weight", "D"),
        ("blocks/attention/qkv/kernel", "transformer.blocks.{}.attn.Wqkv.weight", "CHK D"),
        ("blocks/attention/out/kernel", "transformer.blocks.{}.attn.out_proj.weight", "D HK"),
        ("blocks/norm_mlp/scale", "transformer.blocks.{}.norm_2.weight", "D"),
        ("blocks/mlp/up/kernel", "transformer.blocks.{}.ffn.up_proj.weight", "F D"),
        ("blocks/mlp/down/kernel", "transformer.blocks.{}.ffn.down_proj.weight", "D F"),
        ("norm_final/scale", "transformer.norm_f.weight", "D"),
        ("head/kernel", "lm_head.weight", "V D"),
    ),
    fixed={
        "no_bias": True,
        "expansion_ratio": 4,
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
    defaults={"layer_norm_epsilon": 1e-5},
)
GPT2 = Family(
    cls="GPT2LMHeadModel",
    longest="n_positions",
    settings={
        "n_layer": "n_layers",
        "n_head": "n_heads",
        "n_embd": "d_model",
        "n_inner": "d_ff",
        "vocab_size": "vocab_size",
        "activation_function": "activation",
        "layer_norm_epsilon": "norm_epsilon",
        "tie_word_embeddings": "tied",
    },
    words={"positions": ("learned",), "bias": ("all", "qkv", "none")},
    parameters=(
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
        ("head/kernel", "lm_head.weight", "V D"),
    ),
    fixed={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    defaults={
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
)
OPT = Family(  # imports alone: what it can hold, GPT-2 can too
    cls="OPTForCausalLM",
    longest="max_position_embeddings",
    settings={
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "hidden_size": "d_model",
        "ffn_dim": "d_ff",
        "vocab_size": "vocab_size",
        "activation_function": "activation",
        "tie_word_embeddings": "tied",
    },
    words={"positions": ("learned",), "bias": ("all",)},
    parameters=(
        ("embed/embedding", "model.decoder.embed_tokens.weight", "V D"),
        ("positions/embedding", "model.decoder.embed_positions.weight", "T D", "2"),
        ("blocks/norm_attention/scale", "model.decoder.layers.{}.self_attn_layer_norm.weight", "D"),
        ("blocks/norm_attention/bias", "model.decoder.layers.{}.self_attn_layer_norm.bias", "D"),
        (
            "blocks/attention/qkv/kernel",
            "model.decoder.layers.{}.self_attn.[qkv]_proj.weight",
            "HK D",
        ),
        ("blocks/attention/qkv/bias", "model.decoder.layers.{}.self_attn.[qkv]_proj.bias", "HK"),
        (
            "blocks/attention/out/kernel",
            "model.decoder.layers.{}.self_attn.out_proj.weight",
            "D HK",
        ),
        ("blocks/attention/out/bias", "model.decoder.layers.{}.self_attn.out_proj.bias", "D"),
        ("blocks/norm_mlp/scale", "model.decoder.layers.{}.final_layer_norm.weight", "D"),
        ("blocks/norm_mlp/bias", "model.decoder.layers.{}.final_layer_norm.bias", "D"),
        ("blocks/mlp/up/kernel", "model.decoder.layers.{}.fc1.weight", "F D"),
        ("blocks/mlp/up/bias", "model.decoder.layers.{}.fc1.bias", "F"),
        ("blocks/mlp/down/kernel", "model.decoder.layers.{}.fc2.weight", "D F"),
        ("blocks/mlp/down/bias", "model.decoder.layers.{}.fc2.bias", "D"),
        ("norm_final/scale", "model.decoder.final_layer_norm.weight", "D"),
        ("norm_final/bias", "model.decoder.final_layer_norm.bias", "D"),
        ("head/kernel", "lm_head.weight", "V D"),
    ),
    fixed={
        "do_layer_norm_before": True,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "_remove_final_layer_norm": False,
    },
    defaults={"activation_function": "relu", "tie_word_embeddings": True},
)
GPT_NEOX = Family(
    cls="GPTNeoXForCausalLM",
    longest="max_position_embeddings",
    settings={
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "hidden_size": "d_model",
        "intermediate_size": "d_ff",
        "vocab_size": "vocab_size",
        "hidden_act": "activation",
        "layer_norm_eps": "norm_epsilon",
        "rotary_emb_base": "rope_theta",
        "rotary_pct": "rope_fraction",
        "use_parallel_residual": "parallel_residual",
        "tie_word_embeddings": "tied",
    },
    words={"positions": ("rope",), "bias": ("all", "qkv", "none")},
    parameters=(
        ("embed/embedding", "gpt_neox.embed_in.weight", "V D"),
        ("blocks/norm_attention/scale", "gpt_neox.layers.{}.input_layernorm.weight", "D"),
        ("blocks/norm_attention/bias", "gpt_neox.layers.{}.input_layernorm.bias", "D"),
        (
            "blocks/attention/qkv/kernel",
            "gpt_neox.layers.{}.attention.query_key_value.weight",
            "HCK D",
        ),
        ("blocks/attention/qkv/bias", "gpt_neox.layers.{}.attention.query_key_value.bias", "HCK"),
        ("blocks/attention/out/kernel", "gpt_neox.layers.{}.attention.dense.weight", "D HK"),
        ("blocks/attention/out/bias", "gpt_neox.layers.{}.attention.dense.bias", "D"),
        ("blocks/norm_mlp/scale", "gpt_neox.layers.{}.post_attention_layernorm.weight", "D"),
        ("blocks/norm_mlp/bias", "gpt_neox.layers.{}.post_attention_layernorm.bias", "D"),
        ("blocks/mlp/up/kernel", "gpt_neox.layers.{}.mlp.dense_h_to_4h.weight", "F D"),
        ("blocks/mlp/up/bias", "gpt_neox.layers.{}.mlp.dense_h_to_4h.bias", "F"),
        ("blocks/mlp/down/kernel", "gpt_neox.layers.{}.mlp.dense_4h_to_h.weight", "D F"),
        ("blocks/mlp/down/bias", "gpt_neox.layers.{}.mlp.dense_4h_to_h.bias", "D"),
        ("norm_final/scale", "gpt_neox.final_layer_norm.weight", "D"),
        ("norm_final/bias", "gpt_neox.final_layer_norm.bias", "D"),
        ("head/kernel", "embed_out.weight", "V D"),
    ),
    fixed={"attention_bias": True},
    defaults={
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "rotary_emb_base": 10_000,
        "rotary_pct": 0.25,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
    },
)
_LLAMA_SETTINGS = {
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "hidden_size": "d_model",
    "intermediate_size": "d_ff",
    "vocab_size": "vocab_size",
    "rms_norm_eps": "norm_epsilon",
    "rope_theta": "rope_theta",
    "tie_word_embeddings": "tied",
}
_LLAMA_WORDS: dict[str, tuple] = {
    "positions": ("rope",),
    "norm": ("rms",),
    "activation": ("swiglu",),
}
_LLAMA_DEFAULTS = {"rms_norm_eps": 1e-6, "rope_theta": 10_000, "tie_word_embeddings": False}
_LLAMA_PARAMETERS: tuple[Row, ...] = (
    ("embed/embedding", "model.embed_tokens.weight", "V D"),
    ("blocks/norm_attention/scale", "model.layers.{}.input_layernorm.weight", "D"),
    ("blocks/attention/qkv/kernel", "model.layers.{}.self_attn.[qkv]_proj.weight", "HK D"),
    ("blocks/attention/qkv/bias", "model.layers.{}.self_attn.[qkv]_proj.bias", "HK"),
    ("blocks/attention/q/kernel", "model.layers.{}.self_attn.q_proj.weight", "HK D"),
    ("blocks/attention/q/bias", "model.layers.{}.self_attn.q_proj.bias", "HK"),
    ("blocks/attention/kv/kernel", "model.layers.{}.self_attn.[kv]_proj.weight", "GK D"),
    ("blocks/attention/kv/bias", "model.layers.{}.self_attn.[kv]_proj.bias", "GK"),
    ("blocks/attention/norm_q/scale", "model.layers.{}.self_attn.q_norm.weight", "K"),
    ("blocks/attention/norm_k/scale", "model.layers.{}.self_attn.k_norm.weight", "K"),
    ("blocks/attention/out/kernel", "model.layers.{}.self_attn.o_proj.weight", "D HK"),
    ("blocks/norm_mlp/scale", "model.layers.{}.post_attention_layernorm.weight", "D"),
    ("blocks/mlp/gate/kernel", "model.layers.{}.mlp.gate_proj.weight", "F D"),
    ("blocks/mlp/up/kernel", "model.layers.{}.mlp.up_proj.weight", "F D"),
    ("blocks/mlp/down/kernel", "model.layers.{}.mlp.down_proj.weight", "D F"),
    ("norm_final/scale", "model.norm.weight", "D"),
    ("head/kernel", "lm_head.weight", "V D"),
)
LLAMA = Family(
    cls="LlamaForCausalLM",
    longest="max_position_embeddings",
    settings=_LLAMA_SETTINGS | {"head_dim": "head_size"},
    words=_LLAMA_WORDS,
    parameters=_LLAMA_PARAMETERS,
    fixed={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    defaults=_LLAMA_DEFAULTS,
)
QWEN2 = Family(
    cls="Qwen2ForCausalLM",
    longest="max_position_embeddings",
    settings=_LLAMA_SETTINGS,
    words=_LLAMA_WORDS | {"bias": ("qkv",)},
    parameters=_LLAMA_PARAMETERS,
    fixed={"hidden_act": "silu", "use_sliding_window": False},
    defaults=_LLAMA_DEFAULTS | {"num_key_value_heads": 32},
)
QWEN3 = Family(
    cls="Qwen3ForCausalLM",
    longest="max_position_embeddings",
    settings=_LLAMA_SETTINGS | {"head_dim": "head_size"},
    words=_LLAMA_WORDS | {"qk_norm": (True,)},
    parameters=_LLAMA_PARAMETERS,
    fixed={"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False},
    defaults=_LLAMA_DEFAULTS | {"num_key_value_heads": 32, "head_dim": 128},
)
FAMILIES = {
    "mpt": MPT,
    "gpt2": GPT2,
    "llama": LLAMA,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "gpt_neox": GPT_NEOX,
    "opt": OPT,
}
# Names of activation functions; the first of each is what an export says.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
