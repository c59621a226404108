"""Factors of our model that no class of transformers has, multiplied into its weights.

The folded model computes the same: exactly where a factor is a power of two, else each weight is
rounded once more.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gpt_pjit.config import ModelConfig

BRANCHES = ("blocks/attention/out/", "blocks/mlp/down/")  # whose sum is the residual stream


def folded_config(c: ModelConfig) -> ModelConfig:
    """The model after `fold`."""
    return replace(c, attention_scale=0.0, logit_factor=1.0, residual_factor=1.0, init_rules=())


def fold(c: ModelConfig, path: str, array: np.ndarray) -> np.ndarray:
    """The parameter at `path` with the factors that belong in it."""
    if c.attention_scale and (factor := _of_queries(c, path)) is not None:
        return array * factor
    if c.logit_factor != 1 and path.startswith("norm_final/"):
        return array * np.float32(c.logit_factor)
    if c.residual_factor != 1 and path.startswith(BRANCHES):
        return array * np.float32(c.residual_factor)
    return array


def _of_queries(c: ModelConfig, path: str) -> np.ndarray | None:
    """The factor of the parameters that make queries: their norm's gain, or their projection."""
    factor = np.float32(c.attention_scale * c.sizes["K"] ** 0.5)
    if c.qk_norm:
        return factor if path == "blocks/attention/norm_q/scale" else None
    if path.startswith("blocks/attention/q/"):
        return factor
    if path.startswith("blocks/attention/qkv/"):  # [.., C, H, K], queries first
        return np.array([factor, 1, 1], np.float32)[:, None, None]
    return None
