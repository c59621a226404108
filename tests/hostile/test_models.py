"""Folders of transformers, and tokenizers, that nobody exported."""

import contextlib
import json
import pickle
import struct

import pytest
from safetensors.numpy import load_file, save_file

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens import tokenizer_from_bytes
from gpt_pjit.hf.models import from_json, to_json
from tests.hf.checkpoints import MODELS
from tests.hostile.conftest import Touch, linked, pipe, some, written
from tests.hostile.sandbox import run

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def config(**fields):
    def forge(model):
        found = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(found | fields))

    return forge


def tensors(change):
    def forge(model):
        save_file(change(load_file(model / WEIGHTS)), model / WEIGHTS)

    return forge


def header(change, length=None):
    """The header of the weights as `change` returns it, and perhaps another length of it."""

    def forge(model):
        content = (model / WEIGHTS).read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        new = change(json.loads(content[8 : 8 + size]))
        text = new if isinstance(new, bytes) else json.dumps(new).encode()
        prefix = struct.pack("<Q", len(text) if length is None else length)
        (model / WEIGHTS).write_bytes(prefix + text + content[8 + size :])

    return forge


def tensor(**fields):
    def change(found):
        found["transformer.wte.weight"] |= fields
        return found

    return header(change)


def index(*shards):
    def forge(model):
        (model / WEIGHTS).rename(model.parent / "elsewhere.safetensors")
        weight_map = {f"w{number}": shard for number, shard in enumerate(shards)}
        (model / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    return forge


def pickled(model):
    (model / WEIGHTS).unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Touch()))


def tokenizer(**fields):
    def forge(model):
        found = json.loads((model / "tokenizer.json").read_text())
        (model / "tokenizer.json").write_text(json.dumps(found | fields))

    return forge


def older(vocabulary, merges):
    def forge(model):
        (model / "tokenizer.json").unlink()
        (model / "vocab.json").write_bytes(vocabulary)
        (model / "merges.txt").write_bytes(merges)

    return forge


def pipe_for_merges(model):
    older(b"{}", b"")(model)
    pipe("merges.txt")(model)


def zeros(model):
    (model / "tokenizer.json").unlink()
    (model / "tokenizer.model").write_bytes(bytes(1000))


def many_heads(model):
    fields = to_json(MODELS["llama-4-2"], 96, 256, "float32")
    heads = {"num_attention_heads": 2**30, "num_key_value_heads": 7, "head_dim": 2}
    (model / "config.json").write_text(json.dumps(fields | heads))


def halved(found):
    return {name: array[: len(array) // 2] for name, array in found.items()}


MODEL = {
    "30,000,000 layers": (config(n_layer=30_000_000), "30,000,000 layers, but only 28 tensors"),
    "a huge width": (config(n_embd=2**62, n_head=2**60), "must be below 2,147"),
    "a huge vocabulary": (config(vocab_size=2**62), "vocab_size=.* must be below 2,147"),
    "a large vocabulary": (config(vocab_size=2**30), "vocab_size=.* is far larger"),
    "a large context": (config(n_positions=2**30), "wpe.weight: expected shape"),
    "a large inner width": (config(n_inner=2**30), "expected shape"),
    "a width below 0": (config(n_embd=-32), "n_embd=-32: must be a positive integer"),
    "many heads": (many_heads, "must divide model.n_heads=1073741824"),
    "words": (config(n_layer="2", n_head=None, vocab_size=[1]), "3 problems"),
    "a long word": (config(activation_function="x" * 10**7), "activation_function='xxx"),
    "code of its own": (config(model_type="ours", auto_map={"AutoConfig": "code.C"}), "unknown"),
    "nesting": (written("config.json", b"[" * 10**5), "not valid JSON"),
    "a pipe for the config": (pipe("config.json"), "config.json"),
    "a huge config": (written("config.json", b" " * 10**8), "100,000,000 bytes"),
    "deep settings": (config(x=json.loads('{"x":' * 300 + "1" + "}" * 300)), "nested too deeply"),
    "a pipe for weights": (pipe(WEIGHTS), "not a regular file|damaged"),
    "a device for weights": (linked(WEIGHTS, "/dev/zero"), "not a regular file|damaged"),
    "no tensors": (tensors(lambda _: {}), "2 layers, but only 0 tensors"),
    "half of each tensor": (tensors(halved), "expected shape"),
    "a pickle for weights": (written(WEIGHTS, pickle.dumps(Touch())), "damaged or cut short"),
    "a .bin": (pickled, "a Python pickle, which can run code"),
    "a header beyond the file": (header(lambda h: h, length=2**60), "damaged or cut short"),
    "a header of 100 MB": (header(lambda _: b" " * (10**8 + 8)), "damaged or cut short"),
    "a nested header": (header(lambda _: b'{"a":' * 10**6), "damaged or cut short"),
    "offsets beyond the file": (tensor(data_offsets=[0, 2**60]), "damaged or cut short"),
    "offsets that decrease": (tensor(data_offsets=[99, 7]), "damaged or cut short"),
    "offsets below 0": (tensor(data_offsets=[-8, 7]), "damaged or cut short"),
    "a shape that overflows": (tensor(shape=[2**33, 2**31]), "damaged or cut short"),
    "an unknown dtype": (tensor(dtype="OBJECT"), "damaged or cut short"),
    "shards elsewhere": (index("../elsewhere.safetensors"), "damaged or cut short"),
    "an absolute shard": (index("/etc/passwd"), "damaged or cut short"),
    "a folder as a shard": (index(".."), "regular|damaged"),
    "missing shards": (index("model-00001-of-00002.safetensors"), "damaged or cut short"),
    "no shards": (index(), "2 layers, but only 0 tensors"),
    "shards of numbers": (written(INDEX, b'{"weight_map": {"a": 1}}'), "damaged or cut short"),
    "an index that is a list": (written(INDEX, b"[]"), "not a JSON object"),
    "a pipe for the tokenizer": (pipe("tokenizer.json"), "not a regular file"),
    "a tokenizer of 100 MB": (written("tokenizer.json", b"[" * 10**8), "100,000,000 bytes"),
    "a nested tokenizer": (written("tokenizer.json", b'{"a":' * 10**6), "not a valid tokenizer"),
    "an empty tokenizer": (written("tokenizer.json", b"{}"), "not a valid tokenizer"),
    "a tokenizer of code": (tokenizer(decoder={"type": "Custom", "code": "os"}), "not a valid"),
    "a tokenizer of zeros": (zeros, "not a valid tokenizer"),
    "a pipe for tokenizer.model": (pipe("tokenizer.model"), "not a regular file"),
    "no end of text": (tokenizer(added_tokens=[]), "no token <.endoftext.>|not a valid"),
    "a pipe for merges": (pipe_for_merges, "not a regular file"),
    "a nested vocabulary": (older(b'{"a":' * 10**6, b""), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", some(MODEL, "30,000,000 layers", "a .bin"))
def test_a_forged_model_is_refused(sandbox, refused, name):
    forge, match = MODEL[name]
    forge(sandbox / "model")
    refused(["hf", "import", f"--source={sandbox / 'model'}", f"--out={sandbox / 'new'}"], match)


ANYTHING = (
    *(None, True, -1, 0, 7, 2**30, 2**62, 1.5, float("nan"), float("inf"), "", "x", "llama3"),
    *(
        [],
        [1],
        [[1]],
        ["x"],
        {},
        {"a": 1},
        {"rope_type": {}},
        {"rope_type": "llama3", "factor": "x"},
    ),
    *({"rope_theta": "x"}, {"partial_rotary_factor": []}),
)
OTHER_FIELDS = ("rope_parameters", "rope_scaling", "layer_types", "sliding_window", "head_dim")


@pytest.mark.parametrize("name", ["mpt-4", "gpt2", "opt", "neox", "llama-4-2", "qwen2-6-2"])
def test_a_config_with_anything_in_a_field_is_read_or_refused(name):
    fields = to_json(MODELS[name], 96, 256, "float32")
    for field in {*fields, *OTHER_FIELDS}:
        for value in ANYTHING:
            with contextlib.suppress(ConfigError):
                from_json(fields | {field: value}, "config.json")


@pytest.mark.slow
def test_code_beside_a_model_is_not_read(sandbox, refused):
    """A model that asks for it, and is otherwise whole, is imported without."""
    (sandbox / "model/code.py").write_text("import pathlib; pathlib.Path('executed').touch()")
    classes = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    config(auto_map=classes, trust_remote_code=True)(sandbox / "model")
    settings = {"tokenizer_class": "code.T", "auto_map": {"AutoTokenizer": ["code.T", None]}}
    written("tokenizer_config.json", json.dumps(settings).encode())(sandbox / "model")
    before = {path.name for path in sandbox.iterdir()}
    source, out = f"--source={sandbox / 'model'}", f"--out={sandbox / 'new'}"
    assert run("hf", "import", source, out, only_in=sandbox).code == 0
    assert {path.name for path in sandbox.iterdir()} == before | {"new"}


def test_a_regex_that_backtracks_for_ever_is_refused(originals):
    """The library gives up after some million steps, by a panic, which is no Exception."""
    fields = json.loads((originals / "model/tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated"}
    fields["pre_tokenizer"] = split | {"invert": False}
    forged = tokenizer_from_bytes("tokenizer.json", json.dumps(fields).encode())
    with pytest.raises(ConfigError, match=r"fails on this text: .*retry-limit"):
        forged.encode("x" * 10_000)
