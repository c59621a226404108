"""The name map: where each parameter is in a checkpoint of transformers, and in which layout.

A row is our path, their name with {} for the layer, and the letters of their dimensions; letters
that stand together are merged. Ours come from `partition.gpt_dimensions`: L layers, V vocabulary,
T positions, D model, C query, key and value, H heads, K head size, F feed-forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from gpt_pjit.config import ModelConfig
from gpt_pjit.core.model import param_shapes
from gpt_pjit.core.sharding import gpt_dimensions, match_rules, paths_and_leaves, values

Row = tuple[str, str, str]

MPT: tuple[Row, ...] = (
    ("embed/embedding", "transformer.wte.weight", "V D"),
    ("blocks/norm_attention/scale", "transformer.blocks.{}.norm_1.weight", "D"),
    ("blocks/attention/qkv/kernel", "transformer.blocks.{}.attn.Wqkv.weight", "CHK D"),
    ("blocks/attention/out/kernel", "transformer.blocks.{}.attn.out_proj.weight", "D HK"),
    ("blocks/norm_mlp/scale", "transformer.blocks.{}.norm_2.weight", "D"),
    ("blocks/mlp/up/kernel", "transformer.blocks.{}.ffn.up_proj.weight", "F D"),
    ("blocks/mlp/down/kernel", "transformer.blocks.{}.ffn.down_proj.weight", "D F"),
    ("norm_final/scale", "transformer.norm_f.weight", "D"),
)
GPT2: tuple[Row, ...] = (
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
FAMILIES = {"mpt": MPT, "gpt2": GPT2}


@dataclass(frozen=True)
class Parameter:
    """One row for one model: our whole array, `shape`, and their names, one for each layer."""

    path: str
    shape: jax.ShapeDtypeStruct
    names: tuple[str, ...]
    letters: str  # of one layer of ours
    their_letters: str

    def theirs(self, array: np.ndarray) -> np.ndarray:
        """One layer of ours, in their layout; a view if that can be."""
        order = [self.letters.index(letter) for letter in self.their_letters.replace(" ", "")]
        return array.transpose(order).reshape(self.their_shape)

    def ours(self, array: np.ndarray) -> np.ndarray:
        """One tensor of theirs as a layer of ours."""
        merged = self.their_letters.replace(" ", "")
        split = array.reshape([self._sizes[letter] for letter in merged])
        return split.transpose([merged.index(letter) for letter in self.letters])

    @property
    def their_shape(self) -> tuple[int, ...]:
        groups = self.their_letters.split()
        return tuple(int(np.prod([self._sizes[x] for x in group])) for group in groups)

    @property
    def stacked(self) -> bool:
        return len(self.shape.shape) > len(self.letters)

    @property
    def _sizes(self) -> dict[str, int]:
        sizes = self.shape.shape[1:] if self.stacked else self.shape.shape
        return dict(zip(self.letters, sizes, strict=True))


def parameters(family: str, c: ModelConfig, sequence_length: int) -> Iterator[Parameter]:
    """Every parameter that a model of `family` and the sizes of `c` has, in the table's order."""
    whole = replace(c, bias=family == "gpt2")  # GPT-2 always has biases
    shapes = param_shapes(whole, sequence_length)
    letters = _letters(whole, shapes)
    leaves = dict(paths_and_leaves(shapes))
    for path, name, their_letters in FAMILIES[family]:
        stacked = "{}" in name
        names = tuple(name.format(i) for i in range(c.n_layers)) if stacked else (name,)
        own = letters[path].removeprefix("L")
        yield Parameter(path, leaves[path], names, own, their_letters)


def _letters(c: ModelConfig, shapes: Any) -> dict[str, str]:
    rules = gpt_dimensions(bias=c.bias, positions=c.positions)
    return dict(paths_and_leaves(values(match_rules(rules, shapes))))
