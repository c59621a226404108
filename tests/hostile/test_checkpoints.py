"""Checkpoints that are not what a run saved, and `run.json` files that no run wrote."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import tensorstore

from gpt_pjit.config import Config, flatten
from gpt_pjit.core.checkpoints import write_state
from tests.hostile.conftest import Touch, pipe, some, written

STEP = "checkpoints/1"
METADATA = f"{STEP}/_CHECKPOINT_METADATA"
TREE = f"{STEP}/default/_METADATA"
ARRAYS = f"{STEP}/default/manifest.ocdbt"


def rewritten(name, change):
    """The JSON of that file as `change` returns it."""

    def forge(run):
        (run / name).write_text(json.dumps(change(json.loads((run / name).read_text()))))

    return forge


def about(**fields):
    """What is recorded beside the arrays, with these fields."""

    def change(metadata):
        metadata["custom_metadata"] |= fields
        return metadata

    return rewritten(METADATA, change)


def fingerprint(value):
    def change(metadata):
        metadata["custom_metadata"]["fingerprints"]["params/embed/embedding"] = value
        return metadata

    return rewritten(METADATA, change)


def array(path="params.embed.embedding", **fields):
    """The metadata of a zarr array with these fields."""

    def forge(run):
        store = tensorstore.KvStore.open(
            {"driver": "ocdbt", "base": f"file://{run / STEP / 'default'}/"}
        ).result()
        found = json.loads(store.read(f"{path}/.zarray").result().value)
        store.write(f"{path}/.zarray", json.dumps(found | fields).encode()).result()

    return forge


def without_leaf(run):
    store = {"driver": "ocdbt", "base": f"file://{run / STEP / 'default'}/"}
    kvstore = tensorstore.KvStore.open(store).result()
    for key in kvstore.list().result():
        if key.startswith(b"params.norm_final"):
            kvstore.write(key, None).result()


def of_another_model(run):
    shutil.rmtree(run / STEP)
    params = {"embed": {"embedding": np.ones((7, 5), np.float32)}}
    write_state(run / "checkpoints", 1, {"step": np.int32(1), "params": params})


def another_number(run):
    (run / STEP).rename(run / "checkpoints" / "2")


CHECKPOINTS = {
    "a pipe for arrays": (lambda run: _pipe_for_arrays(run), "not a regular file"),
    "a pipe for the metadata": (pipe(METADATA), "not a regular file"),
    "a linked folder": (lambda run: _linked(run), "not a regular file"),
    "a huge tree": (written(TREE, b" " * 2**25), "33,554,432 bytes"),
    "nested metadata": (written(METADATA, b"[" * 10**5), "cannot be read"),
    "a nested tree": (written(TREE, b'{"a":' * 10**5), "cannot be read"),
    "a list of metadata": (written(METADATA, b"[]"), "cannot be read"),
    "metadata of words": (about(step="1", fingerprints=[]), "neither a step nor fingerprints"),
    "another step": (about(step=7), "it was saved as step 7"),
    "another number": (another_number, "it was saved as step 1"),
    "a negative fingerprint": (fingerprint(-1), "embedding is not what was saved"),
    "NaN for a fingerprint": (fingerprint(float("nan")), "embedding is not what was saved"),
    "a word for a fingerprint": (fingerprint("x" * 10**6), "embedding is not what was saved"),
    "no fingerprint": (about(fingerprints={"step": 1}), "is not what was saved"),
    "a pickle": (written(TREE, pickle.dumps(Touch())), "cannot be read"),
    "a pickle for metadata": (written(METADATA, pickle.dumps(Touch())), "cannot be read"),
    "a pickle for arrays": (written(ARRAYS, pickle.dumps(Touch())), "cannot be read"),
    "an exabyte": (array(shape=[2**50, 16], chunks=[2**50, 16]), "embedding is float32|bytes"),
    "a huge chunk": (array(chunks=[2**31, 16]), "chunk .* is larger than the array"),
    "objects": (array(dtype="|O"), "cannot be read"),
    "another dtype": (array(dtype="<f8"), "embedding is float64"),
    "another shape": (array(shape=[7, 16]), r"embedding is float32 of shape \(7, 16\)"),
    "a negative shape": (array(shape=[-1, 16]), "cannot be read"),
    "a missing leaf": (without_leaf, "lacks params/norm_final"),
    "another model": (of_another_model, "embedding is float32 of shape|lacks params"),
}  # fmt: skip


def _pipe_for_arrays(run):
    file = max((run / STEP / "default").rglob("d/*"), key=lambda file: file.stat().st_size)
    file.unlink()
    os.mkfifo(file)


def _linked(run):
    (run / STEP / "default/d").rename(run / "elsewhere")
    (run / STEP / "default/d").symlink_to(run / "elsewhere")


@pytest.mark.parametrize("name", some(CHECKPOINTS, "a huge chunk"))
def test_a_forged_checkpoint_is_refused(sandbox, refused, name):
    forge, match = CHECKPOINTS[name]
    forge(sandbox / "run")
    refused(["generate", f"--checkpoint={sandbox / 'run'}", "--prompt=a"], match, codes=(77,))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a pipe for arrays", "an exabyte", "a huge chunk", "a pickle"])
def test_verify_survives_a_forged_checkpoint(sandbox, refused, name):
    forge, _ = CHECKPOINTS[name]
    forge(sandbox / "run")
    refused(["checkpoint", "verify", sandbox / "run"], "verdict", codes=(77,))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["٣", "007", "9" * 200, "-1"])
def test_a_folder_named_like_a_step_is_none(sandbox, refused, name):
    (sandbox / "run" / STEP).rename(sandbox / "run/checkpoints" / name)
    refused(["generate", f"--checkpoint={sandbox / 'run'}", "--prompt=a"], "no checkpoint")


def both(change):
    """`run.json`, and the copy beside it, changed."""
    return lambda run: [rewritten(name, change)(run) for name in ("run.json", "run.copy.json")]


def config(**fields):
    """Both with these fields of the config."""

    def change(record):
        for name, value in fields.items():
            section, _, field = name.partition("_in_")
            (record["config"][field] if field else record["config"])[section] = value
        return record

    return both(change)


def record(content):
    """Both files with this content."""

    def forge(run):
        for name in ("run.json", "run.copy.json"):
            (run / name).write_bytes(content)

    return forge


def entries(**fields):
    return both(lambda record: record | fields)


def without(*names):
    return both(lambda record: {k: v for k, v in record.items() if k not in names})


def nested(depth):
    value = 1
    for _ in range(depth):
        value = {"source": value, "kind": "grow", "from": "x"}
    return value


ENTRIES = "its entries are not those of a run"
RUNS = {
    "nesting": (record(b"[" * 1100), "not valid JSON"),
    "nesting that can be read": (entries(notes=nested(300)), "nested too deeply"),
    "100 MB": (record(b" " * 10**8), "100,000,000 bytes"),
    "many fields": (entries(config={f"x{i}": 0 for i in range(10**6)}), "x99=0: no such field"),
    "a pickle": (record(pickle.dumps(Touch())), "not valid JSON"),
    "a list": (record(b"[]"), "not a JSON object"),
    "30,000,000 layers": (config(n_layers_in_model=30_000_000), "is float32 of shape|bytes"),
    "30,000,000 layers, unrolled": (
        config(n_layers_in_model=30_000_000, scan_layers_in_model=False),
        "is float32 of shape|bytes",
    ),
    "a width below 0": (config(d_model_in_model=-16), "model.d_model=-16: must be at least 1"),
    "no heads": (config(n_heads_in_model=0), "model.n_heads=0: must be at least 1"),
    "a huge vocabulary": (config(vocab_size_in_model=2**62), "vocab_size=.* must be below 2,147"),
    "a huge context": (config(sequence_length_in_data=2**62), "sequence_length=.* must be below"),
    "a huge width": (config(d_model_in_model=2**30), "more parameters"),
    "many heads": (
        config(n_heads_in_model=2**30, head_size_in_model=2, n_kv_heads_in_model=7),
        "n_heads=1073741824: must be below 65,536",
    ),
    "huge numbers": (
        config(d_ff_in_model=10**4000, vocab_size_in_model=10**4000),
        "d_ff=.* must be below",
    ),
    "words for numbers": (config(n_layers_in_model="2", d_ff_in_model="x" * 10**7), "must be int"),
    "true for a number": (config(n_layers_in_model=True), "n_layers=True: must be int"),
    "NaN": (config(dropout_residual_in_model=float("nan")), "must be"),
    "an unknown position": (config(positions_in_model="__import__('os')"), "unknown choice"),
    "a later version": (config(n_experts_in_model=8), "n_experts=8: no such field"),
    "a section of words": (config(model="large"), "model='large': must be ModelConfig"),
    "rules of words": (config(rules_in_partition=[["(", 1], 7]), "rules|regex|partition"),
    "no tokenizer": (without("tokenizer"), "names no tokenizer"),
    "a tokenizer of numbers": (entries(tokenizer=7), ENTRIES),
    "data of numbers": (entries(data=[1, 2]), ENTRIES),
    "no data": (entries(data=[]), ENTRIES),
    "starts of numbers": (entries(starts=[1]), ENTRIES),
    "a word for a step": (entries(saved="x"), ENTRIES),
    "a source of numbers": (entries(source=nested(9)), ENTRIES),
    "walks of numbers": (entries(walks=[1]), ENTRIES),
    "no walks": (entries(walks=[]), ENTRIES),
    "a word for an origin": (entries(**{"from": "x"}), ENTRIES),
    "an average of nothing": (entries(source={"kind": "average", "from": "x"}), ENTRIES),
}  # fmt: skip


@pytest.mark.parametrize("name", some(RUNS, "nesting", "30,000,000 layers"))
def test_a_forged_run_is_refused(sandbox, refused, name):
    forge, match = RUNS[name]
    forge(sandbox / "run")
    refused(["generate", f"--checkpoint={sandbox / 'run'}", "--prompt=a"], match)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [None, 7, "x", [], {}, True, [[1]], {"a": 1}])
def test_a_field_of_a_wrong_type_is_refused(sandbox, refused, kind):
    """Every field of the config at once, and every entry beside it."""

    def change(record):
        for name in flatten(Config()):
            section, _, field = name.rpartition(".")
            (record["config"][section] if section else record["config"])[field] = kind
        return record | dict.fromkeys(("tokenizer", "data", "saved", "source"), kind)

    both(change)(sandbox / "run")
    refused(["generate", f"--checkpoint={sandbox / 'run'}", "--prompt=a"], "problem")
    rewritten("run.json", lambda record: record | {"config": kind})(sandbox / "run")
    refused(["checkpoint", "list", sandbox / "run"], "problem")
