"""Every rule that a config must satisfy before anything is built; reports all problems at once."""

import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

from gpt_pjit.config import Config, ModelConfig, flatten
from gpt_pjit.core.errors import ConfigError, Problem, nearest_multiples

CHOICES = {
    "model.positions": ("alibi", "learned", "rope", "none"),
    "model.norm": ("layer", "rms"),
    "model.activation": ("gelu", "gelu_tanh", "relu", "relu2", "swiglu"),
    "model.bias": ("none", "qkv", "all"),
    "model.dtype": ("bfloat16", "float32"),
    "model.attention": ("auto", "plain", "kernel"),
    "model.remat": ("none", "selective", "full"),
    "data.validation_split": ("documents", "tail"),
    "optim.schedule": ("cosine", "wsd", "linear", "constant"),
    "partition.layout": ("ddp", "zero1", "zero", "fsdp"),
}
AT_LEAST = {
    "model.n_layers": 1,
    "model.n_heads": 1,
    "model.n_kv_heads": 0,
    "model.head_size": 0,
    "model.d_model": 1,
    "model.d_ff": 1,
    "model.vocab_size": 2,
    "model.logit_softcap": 0,
    "model.attention_scale": 0,
    "data.sequence_length": 2,
    "data.batch_size": 1,
    "optim.steps": 1,
    "optim.warmup_steps": 0,
    "optim.decay_steps": 0,
    "optim.weight_decay": 0,
    "optim.z_loss": 0,
    "optim.microbatches": 1,
    "eval.every": 1,
    "eval.batches": 0,
    "eval.tasks_every": 0,
    "eval.tasks_limit": 0,
    "checkpoint.every": 1,
    "checkpoint.keep": 1,
    "log.every": 1,
    "log.depth_every": 0,
    "sample.tokens": 0,
    "sample.every": 0,
    "seed": 0,
}
MOST_HEADS = 2**16  # whose divisors are soon listed
ADDRESSABLE = 2**45  # float32: addresses have 47 bits
POSITIVE = (
    "model.rope_theta",
    "model.norm_epsilon",
    "model.logit_factor",
    "model.residual_factor",
    "optim.peak_lr",
    "optim.clip_norm",
    "sample.temperature",
)
FRACTIONS = (  # in [0, 1)
    "model.dropout_residual",
    "model.dropout_attention",
    "model.dropout_embedding",
    "data.validation_fraction",
    "optim.b1",
    "optim.b2",
)


def validate(config: Config, source: str = "config", *, with_data: bool = True) -> None:
    """Raises ConfigError with every problem that can be seen without devices or files.

    Imported and grown weights have no data yet: their config is checked without.
    """
    if problems := [*_too_large(config)]:  # other checks would take for ever
        raise ConfigError(problems, source)
    problems = [*_single_fields(flatten(config)), *_mesh(config)]
    problems += [*block_problems(config.model), *_relations(config)]
    problems += _data(config) if with_data else []
    if problems:
        raise ConfigError(problems, source)


def _single_fields(flat: dict[str, Any]) -> Iterator[Problem]:
    for name, choices in CHOICES.items():
        if flat[name] not in choices:
            yield Problem(name, flat[name], "unknown choice", f"use one of {', '.join(choices)}")
    for name, least in AT_LEAST.items():
        if flat[name] < least:
            yield Problem(name, flat[name], f"must be at least {least}", f"try {least}")
    for name, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            yield Problem(name, value, "must be finite", "give a finite number")
    for name in POSITIVE:
        if flat[name] <= 0:
            yield Problem(name, flat[name], "must be above 0", "config.py has its default")
    for name in FRACTIONS:
        if math.isfinite(flat[name]) and not 0 <= flat[name] < 1:
            remedy = "give a fraction, not a percentage"
            yield Problem(name, flat[name], "must be in [0, 1)", remedy)
    if flat["seed"] >= 2**63:
        yield Problem("seed", flat["seed"], "must be below 2**63", "try 0")
    final = flat["optim.final_lr_fraction"]
    if math.isfinite(final) and not 0 <= final <= 1:
        remedy = "0.1 ends the decay at 10 % of peak_lr"
        yield Problem("optim.final_lr_fraction", final, "must be in [0, 1]", remedy)


def _too_large(config: Config) -> Iterator[Problem]:
    most = {"seed": math.inf, "model.n_heads": MOST_HEADS}
    large = False
    for name, size in flatten(config).items():
        if type(size) is int and size >= (bound := most.get(name, 2**31)):
            large = True
            yield Problem(name, size, f"must be below {bound:,}", "check the number")
    if large:
        return
    c = config.model
    width = max(c.d_model, c.n_heads * c.head_size)
    rows = c.vocab_size + config.data.sequence_length * (c.positions == "learned")
    count = c.d_model * (c.n_layers * (4 * width + 3 * c.d_ff) + rows)
    if count >= ADDRESSABLE:
        constraint = "has more parameters than a machine can address"
        yield Problem("model", count, constraint, "check n_layers, d_model, d_ff and vocab_size")


def _mesh(config: Config) -> Iterator[Problem]:
    sizes = {f"mesh.{axis}": getattr(config.mesh, axis) for axis in ("replica", "data", "tensor")}
    for name, size in sizes.items():
        if size < 1 and size != -1:
            remedy = "-1 takes all remaining devices"
            yield Problem(name, size, "must be a positive size or -1", remedy)
    if list(sizes.values()).count(-1) > 1:
        given = tuple(sizes.values())
        yield Problem("mesh", given, "more than one axis is -1", "give all but one a size")


def block_problems(c: ModelConfig) -> Iterator[Problem]:
    """What is wrong between fields of the model, of a config or of an import."""
    if c.n_heads < 1:
        return
    if c.head_size == 0 and c.d_model % c.n_heads:
        remedy = f"try {nearest_multiples(c.d_model, c.n_heads)}, or set model.head_size"
        constraint = f"must be divisible by model.n_heads={c.n_heads}"
        yield Problem("model.d_model", c.d_model, constraint, remedy)
    if c.n_kv_heads > 0 and c.n_heads % c.n_kv_heads:
        tried = range(1, min(c.n_heads, MOST_HEADS) + 1)
        works = ", ".join(str(n) for n in tried if c.n_heads % n == 0)
        constraint = f"must divide model.n_heads={c.n_heads}"
        yield Problem("model.n_kv_heads", c.n_kv_heads, constraint, f"try {works}")
    rotated = c.sizes["K"] * c.rope_fraction
    if c.positions == "rope" and (not 0 < c.rope_fraction <= 1 or rotated % 2):
        constraint = f"must rotate an even part of a head of {c.sizes['K']}, got {rotated:g}"
        yield Problem("model.rope_fraction", c.rope_fraction, constraint, "1 rotates whole heads")
    if c.rope_scaling and not _is_llama3_scaling(c.rope_scaling):
        constraint = "must be (factor, low and high frequency factor, trained length)"
        remedy = "for example (8.0, 1.0, 4.0, 8192)"
        yield Problem("model.rope_scaling", c.rope_scaling, constraint, remedy)
    if not all(type(window) is int and window >= 0 for window in c.windows):
        remedy = "0 is a layer without one"
        yield Problem("model.windows", c.windows, "must be numbers of keys", remedy)
    elif c.windows and c.n_layers % len(c.windows):
        constraint = f"has {len(c.windows)} entries, which do not divide {c.n_layers} layers"
        remedy = "write one for each layer of a period"
        yield Problem("model.windows", c.windows, constraint, remedy)
    if not all(map(_is_factor, c.init_rules)):
        constraint = "must be pairs of a regex and a factor of at least 0"
        remedy = "for example (('blocks/.*/kernel', 0.5), ('.*', 1.0))"
        yield Problem("model.init_rules", c.init_rules, constraint, remedy)


def _is_factor(row: Any) -> bool:
    if not isinstance(row, tuple) or len(row) != 2 or not isinstance(row[0], str):
        return False
    return _is_weight(row[1])


def _is_llama3_scaling(scaling: tuple) -> bool:
    numbers = len(scaling) == 4 and all(type(n) in (int, float) and 0 < n < 1e9 for n in scaling)
    return numbers and scaling[0] >= 1 and scaling[1] < scaling[2]


def _relations(config: Config) -> Iterator[Problem]:
    data, optim = config.data, config.optim
    if optim.microbatches >= 1 and data.batch_size % optim.microbatches:
        remedy = f"try {nearest_multiples(data.batch_size, optim.microbatches)}"
        constraint = f"must be divisible by optim.microbatches={optim.microbatches}"
        yield Problem("data.batch_size", data.batch_size, constraint, remedy)
    stable = optim.steps - optim.warmup_steps
    if optim.schedule == "wsd" and not 0 < optim.decay_steps <= stable:
        constraint = f"must be from 1 to the {stable} steps after optim.warmup_steps"
        remedy = f"try {max(optim.steps // 5, 1)}"
        if stable < 1:
            constraint, remedy = "has no steps after the warm-up", "lower optim.warmup_steps"
        yield Problem("optim.decay_steps", optim.decay_steps, constraint, remedy)
    prompts = config.sample.prompts
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        remedy = "for example ('def',), or ('',) for text from nothing"
        yield Problem("sample.prompts", prompts, "must be one or more texts", remedy)
    if not all(isinstance(task, str) and task for task in config.eval.tasks):
        remedy = "for example ('piqa', 'file:README.md')"
        yield Problem("eval.tasks", config.eval.tasks, "must be names of tasks", remedy)
    if optim.schedule != "wsd" and optim.decay_steps:
        constraint, remedy = "only applies to optim.schedule='wsd'", "set that, or 0"
        yield Problem("optim.decay_steps", optim.decay_steps, constraint, remedy)


def _data(config: Config) -> Iterator[Problem]:
    model, data = config.model, config.data
    value = {"data.text": data.text, "data.path": data.path, "data.sources": data.sources}
    if sum(map(bool, value.values())) != 1:
        remedy = "set text to a glob of files, path to a token dataset, or sources to several"
        yield Problem("data", value, "needs exactly one of text, path and sources", remedy)
    if not all(map(_is_source, data.sources)):
        constraint = "must be pairs of a path and a weight, or its weights by step"
        remedy = "for example (('data/web', 0.7), ('data/books', ((0, 0.3), (8000, 0.6))))"
        yield Problem("data.sources", data.sources, constraint, remedy)
    elif empty := [step for step, weights in data.stages if not any(weights)]:
        constraint = f"has no weight above 0 from step {empty[0]} on"
        yield Problem("data.sources", data.sources, constraint, "give one set a weight there")
    if data.text_exclude and not data.text:
        remedy = "set data.text, or remove it"
        yield Problem("data.text_exclude", data.text_exclude, "only applies to data.text", remedy)
    try:
        re.compile(data.text_exclude)
    except re.error as error:
        constraint = f"is not a valid regex: {error}"
        yield Problem("data.text_exclude", data.text_exclude, constraint, "correct or escape it")
    kind = data.tokenizer.partition(":")[0]
    if kind not in ("bytes", "bpe") and not data.tokenizer.endswith((".json", ".model")):
        remedy = "use bytes, bpe:SIZE, or a path that ends in .json or .model"
        yield Problem("data.tokenizer", data.tokenizer, "unknown tokenizer", remedy)
    elif kind == "bpe":
        size = data.tokenizer.partition(":")[2]
        if not size.isdigit() or int(size) < 257:
            constraint = "bpe needs a vocabulary of at least 257"
            yield Problem("data.tokenizer", data.tokenizer, constraint, "for example bpe:2048")
        elif int(size) > model.vocab_size:
            remedy = f"set model.vocab_size to at least {size}"
            constraint = f"is larger than model.vocab_size={model.vocab_size}"
            yield Problem("data.tokenizer", data.tokenizer, constraint, remedy)
    if data.tokenizer == "bytes" and data.text and model.vocab_size < 257:
        constraint = "bytes and end-of-text need 257 ids"
        yield Problem("model.vocab_size", model.vocab_size, constraint, "try 257, or 264 to pad it")


def _is_source(source: Any) -> bool:
    if not isinstance(source, tuple) or len(source) != 2 or not isinstance(source[0], str):
        return False
    weight = source[1]
    if not isinstance(weight, tuple):
        return _is_weight(weight)
    pairs = all(isinstance(pair, tuple) and len(pair) == 2 for pair in weight)
    if not (weight and pairs and all(type(s) is int and _is_weight(w) for s, w in weight)):
        return False
    steps = [-1, *(step for step, _ in weight), 2**31]
    return all(one < two for one, two in itertools.pairwise(steps))


def _is_weight(weight: Any) -> bool:
    return type(weight) in (int, float) and 0 <= weight < math.inf
