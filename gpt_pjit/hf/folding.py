"""Factors of our model that no class of transformers has, multiplied into its weights.

The folded model computes the same: exactly where a factor is a power of two, else each weight is
rounded once more.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from gpt_pjit.config import ModelConfig


def folded_config(c: ModelConfig) -> ModelConfig:
    """The model after `fold`."""
    return replace(c, attention_scale=0.0, logit_factor=1.0, residual_factor=1.0, init_rules=())


def fold(c: ModelConfig, path: str, array: np.ndarray) -> None:
    """Multiplies the parameter at `path` by the factors that belong in it, in place."""
    queries = np.float32(c.attention_scale * c.sizes["K"] ** 0.5 or 1)
    factors: dict[str, Any] = {
        "norm_final/": np.float32(c.logit_factor),
        "blocks/attention/out/": np.float32(c.residual_factor),
        "blocks/mlp/down/": np.float32(c.residual_factor),
    }
    if c.qk_norm:
        factors["blocks/attention/norm_q/"] = queries
    else:
        factors["blocks/attention/q/"] = queries
        ones = np.ones((3, 1, 1), np.float32)  # [.., C, H, K]: queries, keys and values
        factors["blocks/attention/qkv/"] = np.concatenate([queries * ones[:1], ones[1:]])
    for start, factor in factors.items():
        if path.startswith(start) and np.any(factor != 1):
            array *= factor
