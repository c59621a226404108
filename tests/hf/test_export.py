"""Exports of our own runs: files, card, limits; and mistakes, in one message each."""

import json

import ml_dtypes
import numpy as np
import pytest

from gpt_pjit.core.checkpointer import fingerprint
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.runtime import read_run
from gpt_pjit.evaluate import read_results
from gpt_pjit.hf import export, import_model
from gpt_pjit.hf.card import history
from gpt_pjit.hf.configs import from_json
from gpt_pjit.hf.tensors import stored_tensors
from tests.helpers import tiny
from tests.hf.checkpoints import write_checkpoint
from tests.hf.ours import logits_of, write_run

MPT = {"d_ff": 256}
IMPORT = {"kind": "import", "from": "a/gpt2"}
HUB = {"kind": "import", "from": "openai-community/gpt2", "revision": "607a30d"}
AVERAGED_IMPORT = {"kind": "average", "steps": [5, 7], "source": IMPORT}
LEARNED = {"positions": "learned", "activation": "gelu_tanh"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    return folder, write_run(folder, tiny(model=MPT), (3, 5))


def test_an_export_has_all_that_is_needed(run, tmp_path):
    folder, params = run
    path = tmp_path / "results.json"
    tasks = {"lambada": {"items": 1200, "window": 32}}
    settings = {"name": "m", "step": 5, "checkpoint": "c", "dtype": "float32", "tasks": tasks}
    settings["fingerprint"] = fingerprint(folder / "checkpoints", 5)
    figures = {"acc": 0.25, "acc_stderr": 0.0125, "perplexity": 1.23456e7, "nll_max": 3.5}
    path.write_text(json.dumps({"lambada": figures, "settings": settings}))
    row = read_results(path)
    done = export(folder, tmp_path / "out", dtype="bfloat16", max_length=777, results=row)
    assert (done.family, done.step, done.max_length) == ("MptForCausalLM", 5, 777)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["max_seq_len"], config["trained_sequence_length"]) == (777, 32)
    assert (config["vocab_size"], config["eos_token_id"]) == (512, 256)
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 256
    stored = stored_tensors(tmp_path / "out")["transformer.blocks.1.ffn.up_proj.weight"]
    assert stored.code == "BF16"
    up = params[5]["blocks"]["mlp"]["up"]["kernel"][1]
    assert np.array_equal(stored.read(), up.T.astype(ml_dtypes.bfloat16))
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    for words in (
        "| lambada | acc | 25.00 ± 1.25 % |\n| lambada | perplexity | 1.235e+07 |\n\n",
        "- lambada: 1,200 items, window 32\n- scored in float32",
        "contexts of 32 tokens; this export takes up to 777",
        "257 tokens, and 255 rows of padding",
        f"5 steps, {5 * 64 * 32:,} tokens, beginning with weights imported from test",
    ):
        assert words in card
    assert "note" not in card


def test_one_step_in_shards(run, tmp_path):
    folder, params = run
    out = tmp_path / "out"
    done = export(folder / "checkpoints" / "3", out, dtype="float32", shard_bytes=100_000)
    assert done.step == 3
    assert len(done.files) > 3
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(done.files)
    assert index["metadata"]["total_size"] == 4 * done.n_params
    stored = stored_tensors(out)["transformer.wte.weight"]
    assert np.array_equal(stored.read(), params[3]["embed"]["embedding"])
    (out / done.files[2]).unlink()
    with pytest.raises(ConfigError, match=rf"has no {done.files[2]}"):
        stored_tensors(out)
    for damaged in ("", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'):
        (out / "model.safetensors.index.json").write_text(damaged)
        with pytest.raises(ConfigError, match=r"index.json is damaged or cut short"):
            stored_tensors(out)


def test_missing_biases_are_written_as_zeros(tmp_path):
    write_run(tmp_path / "run", tiny(model=LEARNED | {"dropout_attention": 0.25}))
    done = export(tmp_path / "run", tmp_path / "out", dtype="float32")
    assert (done.family, done.max_length) == ("GPT2LMHeadModel", 32)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [config[f"{part}_pdrop"] for part in ("resid", "attn", "embd")] == [0, 0.25, 0]
    import_model(str(tmp_path / "out"), tmp_path / "again")
    assert read_run(tmp_path / "again")[0].model.bias
    tokens = np.arange(64).reshape(2, 32)
    before, after = (logits_of(tmp_path / at)(tokens) for at in ("run", "again"))
    np.testing.assert_allclose(after, before, atol=1e-6)
    with pytest.raises(ConfigError, match="learned positions are for 32 tokens"):
        export(tmp_path / "run", tmp_path / "longer", dtype="float32", max_length=64)


def test_what_has_no_class_is_refused_with_all_reasons(tmp_path):
    write_run(tmp_path / "run", tiny(model={"activation": "gelu_tanh", "bias": True}))
    with pytest.raises(ConfigError) as raised:
        export(tmp_path / "run", tmp_path / "out", dtype="float32")
    assert len(raised.value.problems) == 3
    for words in ("model.activation", "model.bias", "model.d_ff=128", "export needs 4 x 64"):
        assert words in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_an_import_names_every_tensor_that_is_wrong(tmp_path):
    folder = write_checkpoint(tmp_path / "theirs", "mpt-4")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layers": 3, "vocab_size": 999}))
    with pytest.raises(ConfigError) as raised:
        import_model(str(folder), tmp_path / "run")
    assert len(raised.value.problems) == 1 + 6  # the embedding, and the parts of a third layer
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 256}))
    with pytest.raises(ConfigError, match="vocab_size=256: is smaller than the 257 ids of bytes"):
        import_model(str(folder), tmp_path / "run")
    (folder / "config.json").write_text("[1]")
    with pytest.raises(ConfigError, match=r"config.json holds no fields"):
        import_model(str(folder), tmp_path / "run")
    assert "wte.weight: expected shape (999, 32), got (264, 32)" in str(raised.value)
    (folder / "config.json").write_text(json.dumps(config))
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(ConfigError, match=r"is damaged or cut short"):
        import_model(str(folder), tmp_path / "run")
    # As many bytes as the file has, but not as the tensors take.
    weights.write_bytes(whole.replace(b'"F32"', b'"F16"', 1))
    with pytest.raises(ConfigError, match=r"is damaged or cut short"):
        import_model(str(folder), tmp_path / "run")
    with pytest.raises(
        ConfigError, match=r"revision='main': is one of the hub, and .* is a folder"
    ):
        import_model(str(folder), tmp_path / "run", "main")
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(
        ConfigError, match=r"has no model.safetensors; .* a .bin is a Python pickle"
    ):
        import_model(str(folder), tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "llama"}, "model_type='llama': unknown; known: mpt, gpt2"),
        ({"model_type": ["mpt"]}, r"model_type=\['mpt'\]: unknown; known: mpt, gpt2"),
        ({"attn_config": {"clip_qkv": 6}}, "attn_config.clip_qkv=6: our model has None only"),
        ({"attn_config": "none"}, "attn_config.alibi='none': our model has True only"),
        ({"trained_sequence_length": "x"}, "trained_sequence_length='x': must be a positive"),
        ({"attn_config": {"alibi": False}}, "attn_config.alibi=False: our model has True only"),
        ({"d_model": None}, "d_model=None: must be a positive integer"),
        ({"n_heads": 5}, "d_model=32: must be divisible by n_heads=5"),
    ],
)
def test_a_config_that_is_not_ours_is_refused(fields, message):
    mpt = {"n_layers": 2, "n_heads": 4, "d_model": 32, "vocab_size": 264, "max_seq_len": 96}
    with pytest.raises(ConfigError, match=message):
        from_json({"model_type": "mpt", **mpt, **fields}, "config.json")


def test_a_width_of_gpt2_that_is_no_number_is_refused():
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": 264, "n_positions": 96}
    assert from_json({"model_type": "gpt2", **sizes, "n_inner": None}, "").model.d_ff == 128
    with pytest.raises(ConfigError, match="n_inner='x': must be a positive integer"):
        from_json({"model_type": "gpt2", **sizes, "n_inner": "x"}, "")


def test_the_commit_of_the_hub_is_recorded(tmp_path, monkeypatch):
    """Of what `main` is today, and nothing is fetched for a folder that is there already."""
    theirs = write_checkpoint(tmp_path / "snapshots" / "0a1b2c", "mpt-4")
    fetched = []

    def fetch(name, **wanted):
        fetched.append((name, wanted["revision"]))
        return str(theirs)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    import_model("someone/model", tmp_path / "run", "main")
    assert read_run(tmp_path / "run")[1]["source"]["revision"] == "0a1b2c"
    with pytest.raises(ConfigError, match="is there already"):
        import_model("someone/model", tmp_path / "run", "main")
    assert fetched == [("someone/model", "main")]


@pytest.mark.parametrize(
    ("source", "step", "words"),
    [
        (None, 7, "Trained with gpt_pjit, 7 steps, 70 tokens."),
        ({"kind": "average", "steps": [5, 7]}, 7, "70 tokens; the mean of the checkpoints of"),
        ({"kind": "average", "steps": [5, 7]}, 9, "90 tokens, beginning with the mean of the"),
        (AVERAGED_IMPORT, 7, "beginning with weights imported from gpt2; the mean of the check"),
        (AVERAGED_IMPORT, 9, "steps 5, 7, which began with weights imported from gpt2."),
        (IMPORT, 0, "Holds weights imported from gpt2."),
        (HUB, 0, "Holds weights imported from openai-community/gpt2 at 607a30d."),
        ({"kind": "grow", "from": "a/580m"}, 7, "beginning with weights grown from 580m."),
    ],
)
def test_the_card_says_where_the_weights_come_from(source, step, words):
    assert words in history(step, 10 * step, source)


def test_results_of_another_checkpoint_are_refused(run, tmp_path):
    folder, _ = run
    settings = {"name": "m", "step": 3, "checkpoint": "there", "dtype": "", "tasks": {}}
    settings["fingerprint"] = fingerprint(folder / "checkpoints", 3)
    (tmp_path / "results.json").write_text(json.dumps({"settings": settings}))
    row = read_results(tmp_path / "results.json")
    export(folder / "checkpoints" / "3", tmp_path / "3", dtype="float32", results=row)
    match = "results.json has the results of another checkpoint, step 3 of there; evaluate .*/5, or"
    with pytest.raises(ConfigError, match=match):
        export(folder, tmp_path / "5", dtype="float32", results=row)
    assert not (tmp_path / "5").exists()
