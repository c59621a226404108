"""A model here and in transformers: settings, names and layouts, and the tokenizer of bytes."""

import math
import re
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
from gpt_pjit.core.validation import block_problems
from gpt_pjit.hf.families import ACTIVATIONS, FAMILIES, Family

TRAINED_LENGTH = "trained_sequence_length"  # a field of our own, which transformers ignores
WIDENING = 4  # d_ff / d_model of MPT, and of a GPT-2 that does not say
SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
IN_ROPE = {"rope_theta": "rope_theta", "rope_fraction": "partial_rotary_factor"}  # since version 5
DROPOUTS = {  # their default is 0.1; other classes have 0, or take no fraction
    "resid_pdrop": "dropout_residual",
    "attn_pdrop": "dropout_attention",
    "embd_pdrop": "dropout_embedding",
}


@dataclass(frozen=True)
class HFModel:
    """A model of transformers: its `model_type`, its parts, and the length it was trained on."""

    name: str
    model: ModelConfig
    sequence_length: int

    @property
    def family(self) -> Family:
        return FAMILIES[self.name]


def hf_model(c: ModelConfig, sequence_length: int) -> HFModel:
    """The model of the class that computes the same; ConfigError if there is none."""
    c = _shortest(c)
    alike = [name for name, f in FAMILIES.items() if c.positions in f.words["positions"]]
    unlike = {name: list(_unlike(c, FAMILIES[name])) for name in alike or FAMILIES}
    name = min(unlike, key=lambda name: len(unlike[name]))
    if unlike[name]:
        way_on = "to train on from its weights here, copy them: gpt_pjit checkpoint grow RUN"
        raise ConfigError([*unlike[name], f"{way_on} --layers={c.n_layers} --out=NEW"], "export")
    return HFModel(name, c, sequence_length)


def _unlike(c: ModelConfig, family: Family) -> Iterator[Problem]:
    """Where our model is another than the class."""
    for field in FIXED_BY_WEIGHTS:
        name = field.removeprefix("model.")
        value, standard = getattr(c, name), getattr(ModelConfig(), name)
        if name == "activation" and name in family.settings.values():
            allowed: tuple = tuple(dict.fromkeys(ACTIVATIONS.values()))
        elif name == "d_ff" and name not in family.settings.values():
            allowed = (WIDENING * c.d_model,)
        elif name in family.settings.values() or (
            name == "rope_scaling" and "rope" in family.words["positions"]
        ):
            continue
        else:
            allowed = family.words.get(name, (standard,))
        if value not in allowed:
            remedy = f"{family.cls} needs {' or '.join(map(repr, allowed))}"
            yield Problem(field, value, "no class of transformers supports this", remedy)


def to_json(hf: HFModel, max_length: int, eot_id: int, dtype: str) -> dict[str, Any]:
    """The config.json, for contexts up to `max_length`."""
    c, family = hf.model, hf.family
    c = replace(c, n_kv_heads=c.sizes["G"], head_size=c.sizes["K"])
    fields = {
        "architectures": [family.cls],
        "model_type": hf.name,
        **{theirs: getattr(c, ours) for theirs, ours in family.settings.items()},
        family.longest: max_length,
        **family.fixed,
        "dtype": dtype,
        "torch_dtype": dtype,  # the name of older versions
        "use_cache": True,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), eot_id),
        TRAINED_LENGTH: hf.sequence_length,
    }
    for theirs, ours in family.settings.items():
        if ours == "activation":
            fields[theirs] = next(name for name, own in ACTIVATIONS.items() if own == c.activation)
    if c.rope_scaling:
        scaling = dict(zip(SCALING, c.rope_scaling, strict=True))
        fields["rope_scaling"] = {"rope_type": "llama3", **scaling}
    if hf.name == "gpt2":
        fields |= {theirs: getattr(c, ours) for theirs, ours in DROPOUTS.items()}
    return fields


def from_json(fields: dict[str, Any], source: str) -> HFModel:
    """The model of a config.json; ConfigError with everything that ours does not support."""
    name = fields.get("model_type")
    if name not in tuple(FAMILIES):
        remedy = f"known: {', '.join(FAMILIES)}"
        raise ConfigError([Problem("model_type", name, "unknown", remedy)], source)
    family = FAMILIES[name]
    given = {theirs: value for theirs, value in fields.items() if value is not None}
    rope = given.get("rope_parameters") or given.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        problem = Problem("rope_scaling", rope, "must be an object", "fix the file")
        raise ConfigError([problem], source)
    for theirs, ours in family.settings.items():
        if IN_ROPE.get(ours) in rope:
            given[theirs] = rope[IN_ROPE[ours]]
    settings = family.defaults | given
    lengths = (family.longest, *({TRAINED_LENGTH} & given.keys()))
    problems = [
        *_unsupported(fields, rope, family),
        *(p for theirs, ours in family.settings.items() for p in _mistyped(settings, theirs, ours)),
        *(p for theirs in lengths for p in _mistyped(settings, theirs, "n_layers")),
    ]
    if problems:
        raise ConfigError(problems, source)
    words: dict[str, Any] = {word: allowed[0] for word, allowed in family.words.items()}
    words |= {
        ours: settings[theirs] for theirs, ours in family.settings.items() if theirs in settings
    }
    for word in {"rope_theta", "rope_fraction", "norm_epsilon"} & words.keys():
        words[word] = float(words[word])
    if "activation" in family.settings.values():
        words["activation"] = ACTIVATIONS[words["activation"]]
    words.setdefault("d_ff", WIDENING * words["d_model"])
    if rope.get("rope_type", rope.get("type")) == "llama3":
        words["rope_scaling"] = tuple(rope.get(key) for key in SCALING)
    # bfloat16 if the weights are; float16 is computed in float32.
    dtype = given.get("dtype", given.get("torch_dtype"))
    c = _shortest(ModelConfig(**words, dtype="bfloat16" if dtype == "bfloat16" else "float32"))
    if problems := list(block_problems(c)):
        raise ConfigError(problems, source)
    length = given[family.longest]
    if c.positions != "learned":  # a model may take more than it was trained on
        length = given.get(TRAINED_LENGTH, c.rope_scaling[-1] if c.rope_scaling else length)
    return HFModel(name, c, length)


def _unsupported(fields: dict[str, Any], rope: dict[str, Any], family: Family) -> Iterator[Problem]:
    settings, remedy = flatten_dict(fields, sep="."), "choose another model"
    for name, only in flatten_dict(family.fixed, sep=".").items():
        if settings.get(name, only) != only:
            yield Problem(name, settings[name], f"our model supports only {only!r}", remedy)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        yield Problem("rope_scaling", kind, "our model supports only 'llama3'", remedy)


def _mistyped(settings: dict[str, Any], theirs: str, ours: str) -> Iterator[Problem]:
    value, default = settings.get(theirs), getattr(ModelConfig(), ours)
    if value is None and ours in ("d_ff", "n_kv_heads", "head_size"):  # they follow from others
        return
    number = isinstance(value, int | float) and type(value) is not bool and value > 0
    if ours == "activation" and value not in tuple(ACTIVATIONS):
        yield Problem(theirs, value, "unknown", f"known: {', '.join(ACTIVATIONS)}")
    elif type(default) is int and not (number and type(value) is int):
        yield Problem(theirs, value, "must be a positive integer", "fix the file")
    elif type(default) is float and not number:
        yield Problem(theirs, value, "must be a positive number", "fix the file")
    elif type(default) is bool and type(value) is not bool:
        yield Problem(theirs, value, "must be true or false", "fix the file")


def _shortest(c: ModelConfig) -> ModelConfig:
    """The same model without the sizes that follow from others."""
    groups = 0 if c.n_kv_heads == c.n_heads else c.n_kv_heads
    head_size = 0 if c.head_size * c.n_heads == c.d_model else c.head_size
    return replace(c, n_kv_heads=groups, head_size=head_size)


@dataclass(frozen=True)
class Parameter:
    """An array of ours and the tensors of theirs that it holds."""

    path: str
    shape: tuple[int, ...]
    letters: str  # of its dimensions
    names: tuple[str, ...]  # of their tensors, in the order of `parts`
    split: str  # dimensions that theirs has a tensor for each of: layers, and maps that ours joins
    their_letters: str
    skipped: int  # rows of theirs before ours

    def parts(self, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Each name, and the part of our array that is in that tensor, a view."""
        order = [self.letters.index(letter) for letter in (*self.split, *self._sizes)]
        moved = array.transpose(order)
        places = np.ndindex(moved.shape[: len(self.split)])
        return ((name, moved[place]) for name, place in zip(self.names, places, strict=True))

    def theirs(self, part: np.ndarray) -> np.ndarray:
        """A part in their layout, a view if possible."""
        order = [[*self._sizes].index(letter) for letter in self._their_order]
        return part.transpose(order).reshape(self.their_shape)

    def ours(self, tensor: np.ndarray) -> np.ndarray:
        """One of their tensors in the layout of a part."""
        split = tensor[self.skipped :].reshape(
            [self._sizes[letter] for letter in self._their_order]
        )
        return split.transpose([self._their_order.index(letter) for letter in self._sizes])

    @property
    def their_shape(self) -> tuple[int, ...]:
        groups = self.their_letters.split()
        first, *rest = (math.prod(self._sizes[letter] for letter in group) for group in groups)
        return (first + self.skipped, *rest)

    @property
    def _sizes(self) -> dict[str, int]:
        """The dimensions of a part, in our order."""
        sizes = dict(zip(self.letters, self.shape, strict=True))
        return {letter: size for letter, size in sizes.items() if letter not in self.split}

    @property
    def _their_order(self) -> str:
        return self.their_letters.replace(" ", "")


def parameters(hf: HFModel) -> Iterator[Parameter]:
    """Every parameter of the model, in the order of the table, and all that the class has."""
    own: dict[str, Any] = {word: allowed[0] for word, allowed in hf.family.words.items()}
    c = replace(hf.model, **own)
    shapes = param_shapes(c, hf.sequence_length)
    letters = dict(paths_and_leaves(values(match_rules(gpt_dimensions(c), shapes))))
    leaves = dict(paths_and_leaves(shapes))
    for path, name, their_letters, *skipped in hf.family.parameters:
        if path in leaves:
            yield Parameter(
                path,
                leaves[path].shape,
                letters[path],
                tuple(_names(name, c.n_layers)),
                "".join(letter for letter in letters[path] if letter not in their_letters),
                their_letters,
                int(*skipped),
            )


def _names(name: str, n_layers: int) -> Iterator[str]:
    """`h.{}.[qk]` for two layers is h.0.q, h.0.k, h.1.q, h.1.k."""
    maps = re.search(r"\[(\w+)\]", name)
    for layer in range(n_layers if "{}" in name else 1):
        for letter in maps[1] if maps else [""]:
            of_map = name.replace(maps[0], letter) if maps else name
            yield of_map.replace("{}", str(layer))


def byte_tokenizer() -> bytes:
    """A tokenizer.json with ids 0 to 255 for the bytes and 256 for end-of-text."""
    # GPT-2 writes a visible byte as itself, and the others as the characters from 256 on.
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    visible = {ord(c): c for c in characters if ord(c) < 256}
    others = iter(characters[len(visible) :])
    vocabulary = {visible.get(byte) or next(others): byte for byte in range(256)}
    return byte_level(models.BPE(vocabulary, []), use_regex=False)


def byte_level(model: models.Model, end: str = END_OF_TEXT, **options: bool) -> bytes:
    """The tokenizer.json of a byte-level `model`, whose documents end with the token `end`."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, **options)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([end])
    return tokenizer.to_str(pretty=True).encode()
