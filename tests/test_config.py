"""Planted config mistakes, each with one message that names field, value and remedy."""

import dataclasses
import json

import pytest

from gpt_pjit.config import (
    Config,
    default_config,
    differences,
    flatten,
    from_config_dict,
    from_record,
)
from gpt_pjit.core.errors import EXIT_CONFIG, ConfigError
from gpt_pjit.core.validation import validate
from tests.helpers import ROOT, load_config, run_command_here, tiny, with_fields

MISTAKES = [
    # fields that are wrong, then words of the message
    ({"model.d_model": 1500, "model.n_heads": 16}, "model.d_model=1500", "try 1488 or 1504"),
    ({"data.batch_size": 250, "optim.microbatches": 4}, "data.batch_size=250", "try 248 or 252"),
    ({"model.n_layers": 0}, "model.n_layers=0", "at least 1"),
    ({"model.vocab_size": -5, "data.tokenizer": "x.json"}, "model.vocab_size=-5", "at least 2"),
    ({"model.vocab_size": 100}, "model.vocab_size=100", "try 257, or 264 to pad it"),
    ({"model.positions": "rotary"}, "model.positions='rotary'", "alibi, learned, rope, none"),
    ({"model.activation": "silu"}, "model.activation='silu'", "relu, relu2, swiglu"),
    ({"model.bias": "some"}, "model.bias='some'", "none, qkv, all"),
    ({"model.n_kv_heads": 3}, "model.n_kv_heads=3", "must divide model.n_heads=4; try 1, 2, 4"),
    ({"model.head_size": -1}, "model.head_size=-1", "must be at least 0; try 0"),
    (
        {"model.positions": "rope", "model.rope_fraction": 0.3},
        "model.rope_fraction=0.3",
        "an even part of a head of 16, got 4.8",
    ),
    (
        {"model.positions": "rope", "model.rope_fraction": 2.0},
        "model.rope_fraction=2.0",
        "1 rotates whole heads",
    ),
    ({"model.rope_theta": 0.0}, "model.rope_theta=0.0", "above 0"),
    (
        {"model.rope_scaling": (8.0, 4.0, 1.0, 8192)},
        "model.rope_scaling=(8.0, 4.0, 1.0, 8192)",
        "for example (8.0, 1.0, 4.0, 8192)",
    ),
    ({"model.windows": (8, 0, 8)}, "model.windows=(8, 0, 8)", "do not divide 2 layers"),
    ({"model.windows": (-1, 0)}, "model.windows=(-1, 0)", "0 is a layer without one"),
    ({"optim.z_loss": -1e-4}, "optim.z_loss=-0.0001", "must be at least 0; try 0"),
    ({"model.dtype": "float16"}, "model.dtype='float16'", "bfloat16, float32"),
    ({"model.remat": "some"}, "model.remat='some'", "none, selective, full"),
    ({"model.dropout_attention": 10.0}, "model.dropout_attention=10.0", "not a percentage"),
    ({"data.validation_fraction": 1.0}, "data.validation_fraction=1.0", "[0, 1)"),
    ({"data.validation_split": "random"}, "data.validation_split='random'", "documents, tail"),
    (
        {"data.text": ""},
        "data={'data.text': '', 'data.path': '', ",
        "exactly one of text, path and sources",
    ),
    (
        {"data.text": "", "data.sources": (("a", 0),)},
        "data.sources=(('a', 0),)",
        "no weight above 0 from step 0 on",
    ),
    (
        {"data.text": "", "data.sources": (("a", ((0, 1), (9, 0))), ("b", ((7, 1), (9, 0))))},
        "data.sources=",
        "no weight above 0 from step 9 on; give one set a weight there",
    ),
    (
        {"data.text": "", "data.sources": (("a", 1), ("b", ((9, 1), (9, 2))))},
        "data.sources=",
        "must be pairs of a path and a weight, or its weights by step",
    ),
    ({"data.path": "set"}, "'data.path': 'set'", "exactly one of text, path and sources"),
    (
        {"data.text": "", "data.path": "x", "data.text_exclude": "y"},
        "data.text_exclude",
        "remove it",
    ),
    ({"data.tokenizer": "gpt2"}, "data.tokenizer='gpt2'", "bytes, bpe:SIZE"),
    ({"data.tokenizer": "bpe:100"}, "data.tokenizer='bpe:100'", "for example bpe:2048"),
    ({"data.tokenizer": "bpe:4096"}, "data.tokenizer='bpe:4096'", "vocab_size to at least 4096"),
    ({"data.sequence_length": 1}, "data.sequence_length=1", "at least 2"),
    ({"optim.peak_lr": float("inf")}, "optim.peak_lr=inf", "must be finite"),
    ({"optim.b1": float("nan")}, "optim.b1=nan", "must be finite"),
    ({"optim.final_lr_fraction": float("nan")}, "optim.final_lr_fraction=nan", "must be finite"),
    ({"seed": 10**20}, "seed=100000000000000000000", "below 2**63"),
    ({"data.text_exclude": "(["}, "data.text_exclude='(['", "not a valid regex"),
    ({"optim.peak_lr": 0.0}, "optim.peak_lr=0.0", "above 0"),
    ({"optim.weight_decay": -0.1}, "optim.weight_decay=-0.1", "must be at least 0; try 0"),
    ({"optim.final_lr_fraction": 1.5}, "optim.final_lr_fraction=1.5", "[0, 1]"),
    ({"optim.schedule": "step"}, "optim.schedule='step'", "cosine, wsd, linear, constant"),
    ({"optim.schedule": "wsd"}, "optim.decay_steps=0", "from 1 to the 900 steps after"),
    (
        {"optim.schedule": "wsd", "optim.decay_steps": 901},
        "optim.decay_steps=901",
        "the 900 steps after optim.warmup_steps; try 200",
    ),
    (
        {"optim.schedule": "wsd", "optim.decay_steps": 5, "optim.steps": 50},
        "optim.decay_steps=5",
        "lower optim.warmup_steps",
    ),
    ({"optim.decay_steps": 5}, "optim.decay_steps=5", "only applies to optim.schedule='wsd'"),
    ({"optim.b2": 1.0}, "optim.b2=1.0", "[0, 1)"),
    ({"mesh.data": 0}, "mesh.data=0", "-1 takes all remaining"),
    ({"mesh.tensor": -1}, "mesh=(1, -1, -1)", "give all but one a size"),
    ({"partition.layout": "zero3"}, "partition.layout='zero3'", "ddp, zero1, zero, fsdp"),
    ({"eval.every": 0}, "eval.every=0", "at least 1"),
    ({"checkpoint.keep": 0}, "checkpoint.keep=0", "at least 1"),
    ({"log.depth_every": -1}, "log.depth_every=-1", "must be at least 0; try 0"),
    (
        {"eval.tasks": ("piqa", 1)},
        "eval.tasks=('piqa', 1)",
        "for example ('piqa', 'file:README.md')",
    ),
    ({"sample.prompts": ()}, "sample.prompts=()", "for example ('def',)"),
    ({"sample.prompts": ("a", 1)}, "sample.prompts=('a', 1)", "for example ('def',)"),
    ({"seed": -1}, "seed=-1", "at least 0"),
]


@pytest.mark.parametrize(("fields", "field", "remedy"), MISTAKES, ids=lambda value: str(value)[:40])
def test_one_mistake_has_one_message(fields, field, remedy):
    with pytest.raises(ConfigError) as error:
        validate(with_fields(tiny(), fields), "configs/mine.py")
    assert len(error.value.problems) == 1
    message = str(error.value)
    assert message.startswith("configs/mine.py has 1 problem:\n")
    assert field in message
    assert remedy in message


def test_the_prompt_of_an_older_run_is_read():
    recorded = json.loads(json.dumps(dataclasses.asdict(tiny())))
    del recorded["sample"]["prompts"]
    recorded["sample"]["prompt"] = "def"
    assert from_record(recorded, "run.json").sample.prompts == ("def",)


def test_all_mistakes_are_reported_at_once():
    fields = {"model.n_layers": 0, "model.remat": "some", "optim.peak_lr": -1.0, "mesh.data": 0}
    with pytest.raises(ConfigError) as error:
        validate(with_fields(tiny(), fields))
    assert len(error.value.problems) == 4


def test_misspelt_mistyped_and_missing_fields():
    values = dataclasses.asdict(Config())
    values["model"]["n_layer"] = values["model"].pop("n_layers")
    values["optim"]["steps"] = "many"
    with pytest.raises(ConfigError) as error:
        from_config_dict(values)
    message = str(error.value)
    assert "model.n_layer=4: no such field; did you mean model.n_layers?" in message
    assert "model.n_layers=None: missing" in message
    assert "optim.steps='many': must be int, got str; give an int, without quotes" in message


def test_a_locked_config_refuses_new_keys():
    with pytest.raises(AttributeError, match='Did you mean "n_layers" instead of "n_layer"'):
        default_config().model.n_layer = 3


@pytest.mark.parametrize("name", [p.stem for p in (ROOT / "configs").glob("*.py")])
def test_the_configs_of_this_checkout_are_valid(name):
    config = load_config(name)
    validate(config, name)
    assert from_config_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_580m_is_the_published_run():
    config = flatten(load_config("580m"))
    expected = {
        "model.n_layers": 18,
        "model.d_model": 1536,
        "model.d_ff": 6144,
        "model.n_heads": 12,
        "model.vocab_size": 50304,
        "model.positions": "alibi",
        "model.bias": "none",
        "model.dropout_residual": 0.1,
        "model.dropout_attention": 0.1,
        "model.dropout_embedding": 0.0,
        "model.dtype": "bfloat16",
        "data.sequence_length": 1024,
        "data.batch_size": 512,
        "optim.steps": 97_000,
        "optim.peak_lr": 2.5e-4,
        "optim.warmup_steps": 2_000,
        "optim.final_lr_fraction": 0.1,
        "optim.b2": 0.95,
        "optim.weight_decay": 0.1,
        "optim.clip_norm": 1.0,
    }
    assert {name: config[name] for name in expected} == expected


def test_differences():
    new = with_fields(Config(), {"optim.steps": 7, "seed": 3})
    assert differences(Config(), new) == {"optim.steps": (1000, 7), "seed": (0, 3)}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--config=configs/580.py"],
            "no such file: configs/580.py; configs here: configs/124m.py",
        ),
        ([], "give one with --config=FILE"),
        (["--config=configs/580m.py", "--config.model.n_layer=3"], 'mean "n_layers"'),
        (["--config=configs/580m.py", "--config.model.n_layers=abc"], "n_layers"),
        (["--config=configs/580m.py", "--confg.seed=1"], "confg"),
        (
            ["--config=configs/580m.py", "config.seed=1"],
            "write overrides as --config.optim.steps=100",
        ),
        (
            ["--config=configs/580m.py", "--config.model.n_heads=11", "--config.mesh.tensor=0"],
            "configs/580m.py has 2 problems:\n  mesh.tensor=0",
        ),
    ],
    ids=str,
)
def test_the_command_line_ends_with_one_message_and_exit_78(capsys, flags, words):
    code, _, errors = run_command_here(capsys, "train", *flags)
    assert (code, words in errors) == (EXIT_CONFIG, True), errors


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("c.optim.peak_learning_rate = 1.0", "peak_l"),
        ("c.optim.steps = 'many'", "steps"),
        ("c.optim.steps = 2.5", "steps"),
    ],
)
def test_mistakes_in_a_config_file(capsys, tmp_path, line, words):
    path = tmp_path / "mine.py"
    path.write_text(
        "from gpt_pjit.config import default_config\n"
        "def get_config():\n    c = default_config()\n    c.data.text = 'x'\n"
        f"    {line}\n    return c\n"
    )
    code, _, errors = run_command_here(capsys, "train", f"--config={path}")
    assert (code, words in errors) == (EXIT_CONFIG, True), errors


def test_every_field_is_used_by_a_config():
    """A field exists because a config in configs/ sets it, or to compare runs by a flag."""
    paths = [*(ROOT / "configs").glob("*.py"), ROOT / "gpt_pjit/core/scaling.py"]  # for mup.py
    sources = "".join(path.read_text() for path in paths)
    unused = [name for name in flatten(Config()) if f"c.{name} = " not in sources]
    assert unused == ["model.attention", "seed"]


def test_no_float_field_takes_inf_or_nan():
    floats = [name for name, value in flatten(Config()).items() if isinstance(value, float)]
    for name in floats:
        for value in (float("inf"), float("nan"), -float("inf")):
            with pytest.raises(ConfigError, match=f"{name}="):
                validate(with_fields(tiny(), {name: value}))
