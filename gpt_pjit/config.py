"""The configuration: frozen dataclasses, the only place that sets defaults.

A file in `configs/` starts from `default_config()`, a locked `ml_collections.ConfigDict` with one
entry for each field here, and edits it; the command line overrides fields
(`--config.optim.steps=9`); `from_config_dict` turns the result into a `Config` once.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from ml_collections import ConfigDict

from gpt_pjit.core.errors import MOST_LISTED, ConfigError, Problem


@dataclass(frozen=True)
class ModelConfig:
    """A pre-norm decoder; the defaults are the block of the 580M run."""

    n_layers: int = 4
    n_heads: int = 4
    n_kv_heads: int = 0  # heads of keys and values, each for a group of queries; 0: n_heads
    head_size: int = 0  # 0: d_model / n_heads
    d_model: int = 128
    d_ff: int = 512
    vocab_size: int = 512
    positions: str = "alibi"  # alibi | learned | rope | none
    rope_theta: float = 10_000.0
    rope_fraction: float = 1.0  # of each head that rotates
    rope_scaling: tuple = ()  # Llama 3's: factor, low and high frequency factor, trained length
    windows: tuple = ()  # how many last keys each layer's queries see, repeated; 0: all
    norm: str = "layer"  # layer | rms
    norm_gain: bool = True
    norm_epsilon: float = 1e-5
    qk_norm: bool = False  # norms of each head's queries and keys
    activation: str = "gelu"  # gelu (exact) | gelu_tanh | relu | relu2 | swiglu
    bias: str = "none"  # none | qkv | all projections and layer norms
    parallel_residual: bool = False  # attention and MLP both read the block's input
    tied: bool = True  # one matrix for embedding and logits
    logit_softcap: float = 0.0  # logits stay within +-this, by tanh; 0: no limit
    attention_scale: float = 0.0  # of queries times keys; 0: 1 / sqrt(head size)
    logit_factor: float = 1.0
    residual_factor: float = 1.0  # of what attention and MLP add to the residual stream
    attention: str = "auto"  # plain | kernel, of TPUs | auto: the kernel where it is faster
    init_rules: tuple = ()  # (regex, factor of the initial values); empty: 1 for all
    dropout_residual: float = 0.0
    dropout_attention: float = 0.0
    dropout_embedding: float = 0.0
    dtype: str = "bfloat16"  # of matmul operands; BUILD.md lists what stays float32
    remat: str = "none"  # what the backward pass recomputes: none | selective | full
    scan_layers: bool = True  # False unrolls: a longer compile, a faster step

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each dimension, by its letter; `core/parameters.py` says what they are."""
        head_size = self.head_size or self.d_model // self.n_heads
        groups = self.n_kv_heads or self.n_heads
        heads = {"H": self.n_heads, "G": groups, "K": head_size}
        return heads | {"D": self.d_model, "F": self.d_ff, "V": self.vocab_size}


@dataclass(frozen=True)
class DataConfig:
    """Tokens come from `text`, tokenised once into the workdir, from `path`, a token dataset, or
    from `sources`, several of them.
    """

    text: str = ""  # globs of text, JSON lines or Parquet, or hf:NAME; several by spaces
    text_column: str = "text"  # the column or field that holds the text
    text_exclude: str = ""  # regex; files whose whole path matches are skipped
    tokenizer: str = "bytes"  # bytes | FILE.json | FILE.model | bpe:SIZE (trained on `text`)
    validation_split: str = "documents"  # documents (by hash of each file) | tail (of the stream)
    validation_fraction: float = 0.05
    path: str = ""
    sources: tuple = ()  # (path, weight) of each set; or its weights, ((from step, weight), ...)
    mask_documents: bool = False  # keep attention, positions and loss inside a document
    sequence_length: int = 128
    batch_size: int = 32  # sequences a step, over all hosts

    @property
    def stages(self) -> tuple[tuple[int, tuple[float, ...]], ...]:
        """Each step from which a weight of `sources` changes, and all weights from there on."""
        sets = [w if isinstance(w, tuple) else ((0, w),) for _, w in self.sources] or [((0, 1),)]

        def at(step: int) -> tuple[float, ...]:
            return tuple([0, *(w for start, w in weights if start <= step)][-1] for weights in sets)

        changes = {0, *(step for weights in sets for step, _ in weights)}
        return tuple((step, at(step)) for step in sorted(changes))


@dataclass(frozen=True)
class OptimConfig:
    """An optimizer for each parameter, and a schedule of the learning rate; gradients are clipped
    by their global norm.
    """

    steps: int = 1000
    schedule: str = "cosine"  # cosine | wsd | linear | constant, after the warm-up
    peak_lr: float = 1e-3
    warmup_steps: int = 100
    decay_steps: int = 0  # of wsd: its last steps; a number, so that more steps move only its start
    final_lr_fraction: float = 0.1
    rules: tuple = ()  # (regex, adamw | muon | lion | adafactor), or (.., (name, peak_lr))
    b1: float = 0.9  # AdamW's
    b2: float = 0.95
    weight_decay: float = 0.1
    decay_rules: tuple = ()  # (regex, factor of weight_decay); empty: 1 for matrices, else 0
    lr_rules: tuple = ()  # (regex, factor), or one factor a layer; 0 freezes; empty: 1 for all
    clip_norm: float = 1.0
    z_loss: float = 0.0  # weight in the loss of the squared logsumexp of the logits
    microbatches: int = 1


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one of them may be -1, for all remaining devices."""

    replica: int = 1
    data: int = -1
    tensor: int = 1


@dataclass(frozen=True)
class PartitionConfig:
    """The layout, and a table of rules `(regex, spec)` that replaces the GPT table if not empty."""

    layout: str = "zero"  # ddp | zero1 | zero | fsdp
    rules: tuple = ()


@dataclass(frozen=True)
class EvalConfig:
    """Validation loss every `every` steps on `batches` batches of the split; 0 uses all of it.

    Every `tasks_every` steps and when training ends, the `tasks`, as `gpt_pjit evaluate` names
    them.
    """

    every: int = 100
    batches: int = 0
    tasks: tuple = ()  # piqa, file:PATH, ...
    tasks_every: int = 0  # 0: only at the end
    tasks_limit: int = 0  # items of each task, but for texts; 0: all
    tasks_data_dir: str = ""  # local data, as of `evaluate --data_dir`


@dataclass(frozen=True)
class CheckpointConfig:
    every: int = 500
    keep: int = 3


@dataclass(frozen=True)
class LogConfig:
    """`patience`: seconds without progress after which a run counts as stuck. Every `depth_every`
    steps, norms of weights, gradient and updates by layer, at the cost of another step; 0: never.
    """

    every: int = 10
    depth_every: int = 0
    patience: float = 60.0


@dataclass(frozen=True)
class SampleConfig:
    """Texts from `prompts`, every `every` steps and when training ends; 0 tokens for none."""

    tokens: int = 0
    prompts: tuple = ("",)
    every: int = 0  # 0: only at the end
    temperature: float = 0.8


@dataclass(frozen=True)
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    seed: int = 0


# A run may resume with other values here: they change where and when, not what is computed.
FREE_ON_RESUME = (
    "data.path",
    "mesh.",
    "partition.layout",
    "eval.",
    "checkpoint.",
    "log.",
    "sample.",
)

# Fields that imported or grown weights fix; a run that starts from them may choose the others.
FIXED_BY_WEIGHTS = tuple(
    f"model.{field.name}"
    for field in dataclasses.fields(ModelConfig)
    if field.name not in ("attention", "dtype", "remat", "scan_layers", "init_rules")
    and not field.name.startswith("dropout_")
)


def default_config() -> ConfigDict:
    """A locked ConfigDict with every field at its default, for a config file to edit."""
    return ConfigDict(dataclasses.asdict(Config())).lock()


def from_config_dict(config: ConfigDict | Mapping[str, Any], source: str = "config") -> Config:
    """The frozen config; raises ConfigError with every misspelt, missing or mistyped field."""
    values = config.to_dict() if isinstance(config, ConfigDict) else config
    problems: list[Problem] = []
    result = _convert(Config, values, "", problems)
    if problems:
        raise ConfigError(problems, source)
    return result


def from_record(recorded: Mapping[str, Any], source: str) -> Config:
    """The config of a `run.json`, which may be older than some fields: they have their defaults."""
    with_defaults = {
        section: values | dict(recorded[section])
        if isinstance(values, dict) and isinstance(recorded.get(section), Mapping)
        else recorded.get(section, values)
        for section, values in dataclasses.asdict(Config()).items()
    }
    model = with_defaults["model"]
    if isinstance(model, dict) and isinstance(model["bias"], bool):  # in older runs: all or none
        model["bias"] = "all" if model["bias"] else "none"
    sample = with_defaults["sample"]
    if isinstance(sample, dict) and "prompt" in sample:  # in older runs: one
        sample["prompts"] = (sample.pop("prompt"),)
    return from_config_dict({**recorded, **with_defaults}, source)


def _convert(cls: Any, values: Mapping[str, Any], prefix: str, problems: list[Problem]) -> Any:
    hints = get_type_hints(cls)
    for name in [name for name in values if name not in hints][:MOST_LISTED]:
        close = difflib.get_close_matches(name, hints, n=1)
        remedy = f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(hints)}"
        problems.append(Problem(prefix + name, values[name], "no such field", remedy))
    converted = {}
    for name, kind in hints.items():
        if name not in values:
            problems.append(Problem(prefix + name, None, "missing", "start from default_config()"))
        elif dataclasses.is_dataclass(kind) and isinstance(values[name], Mapping):
            converted[name] = _convert(kind, values[name], f"{prefix}{name}.", problems)
        else:
            converted[name] = _typed(kind, values[name], prefix + name, problems)
    return cls(**converted) if converted.keys() == hints.keys() else None


def _typed(kind: type, value: Any, name: str, problems: list[Problem]) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if kind is tuple and isinstance(value, list | tuple):
        return _tuples(value)
    if type(value) is not kind:
        constraint = f"must be {kind.__name__}, got {type(value).__name__}"
        remedy = f"give {'an' if kind is int else 'a'} {kind.__name__}"
        remedy += ", without quotes" if isinstance(value, str) else ""
        problems.append(Problem(name, value, constraint, remedy))
    return value


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def flatten(config: Config) -> dict[str, Any]:
    """`{"model.n_layers": 18, ...}`, the names that the command line uses."""
    flat: dict[str, Any] = {}
    for section, values in dataclasses.asdict(config).items():
        if isinstance(values, dict):
            flat.update({f"{section}.{name}": value for name, value in values.items()})
        else:
            flat[section] = values
    return flat


def replaced(config: Config, fields: Mapping[str, Any]) -> Config:
    """`config` with `{"model.n_layers": 3, ...}` replaced."""
    for name, value in fields.items():
        section, _, field_name = name.partition(".")
        if field_name:
            value = dataclasses.replace(getattr(config, section), **{field_name: value})
        config = dataclasses.replace(config, **{section: value})
    return config


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """`{field: (old, new)}` for every field whose value differs."""
    before, after = flatten(old), flatten(new)
    return {name: (before[name], after[name]) for name in before if before[name] != after[name]}
