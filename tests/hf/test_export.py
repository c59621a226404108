"""Exports of our own runs: files, card and limits, and one message for each mistake."""

import json

import ml_dtypes
import numpy as np
import pytest

from gpt_pjit.checkpoint_arrays import fingerprint
from gpt_pjit.core.checkpoints import write_state
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.runtime import read_run
from gpt_pjit.evaluate import read_results
from gpt_pjit.hf import export, import_model
from gpt_pjit.hf.exporting import history
from gpt_pjit.hf.importing import stored_tensors
from tests.helpers import tiny
from tests.hf.ours import logits_of, write_run

MPT = {"d_ff": 256}
IMPORT = {"kind": "import", "from": "a/gpt2"}
HUB = {"kind": "import", "from": "openai-community/gpt2", "revision": "607a30d"}
AVERAGED_IMPORT = {"kind": "average", "from": "a/run", "steps": [5, 7], "source": IMPORT}
LEARNED = {"positions": "learned", "activation": "gelu_tanh"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    params = write_run(folder, tiny(model=MPT), (3, 5))
    record = json.loads((folder / "run.json").read_text())
    record["data"] = [record["tokenizer"] | {"tokenizer": record["tokenizer"]["sha256"]}]
    (folder / "run.json").write_text(json.dumps(record))  # as of a run that has begun
    return folder, params


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
    assert (done["family"], done["step"], done["max_length"]) == ("MptForCausalLM", 5, 777)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["max_seq_len"], config["trained_sequence_length"]) == (777, 32)
    assert (config["vocab_size"], config["eos_token_id"]) == (512, 256)
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 256
    stored = stored_tensors(tmp_path / "out")["transformer.blocks.1.ffn.up_proj.weight"]
    assert stored.dtype == "BF16"
    up = params[5]["blocks"]["mlp"]["up"]["kernel"][1]
    assert np.array_equal(stored.read(), up.T.astype(ml_dtypes.bfloat16))
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    for words in (
        "| lambada | acc | 25.00 ± 1.25 % |\n| lambada | perplexity | 1.235e+07 |\n\n",
        "- lambada: 1,200 items, window 32\n- scored in float32",
        "contexts of 32 tokens; this export takes up to 777",
        "257 tokens, and 255 rows of padding",
        f"for 5 steps, {5 * 64 * 32:,} tokens. Origin of the weights, latest first: imported",
    ):
        assert words in card
    assert "note" not in card


def test_one_step_in_shards(run, tmp_path):
    folder, params = run
    out = tmp_path / "out"
    done = export(folder / "checkpoints" / "3", out, dtype="float32", shard_bytes=100_000)
    assert done["step"] == 3
    assert len(done["files"]) > 3
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(done["files"])
    assert index["metadata"]["total_size"] == 4 * done["n_params"]
    stored = stored_tensors(out)["transformer.wte.weight"]
    assert np.array_equal(stored.read(), params[3]["embed"]["embedding"])
    missing = done["files"][2]
    (out / missing).unlink()
    with pytest.raises(ConfigError, match=rf"{missing} is missing, damaged or cut short"):
        stored_tensors(out)
    for damaged in ("", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}', "[" * 1100):
        (out / "model.safetensors.index.json").write_text(damaged)
        with pytest.raises(ConfigError, match=r"index.json is .*damaged"):
            stored_tensors(out)


def test_missing_biases_are_written_as_zeros(tmp_path):
    write_run(tmp_path / "run", tiny(model=LEARNED | {"dropout_attention": 0.25}))
    done = export(tmp_path / "run", tmp_path / "out", dtype="float32")
    assert (done["family"], done["max_length"]) == ("GPT2LMHeadModel", 32)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [config[f"{part}_pdrop"] for part in ("resid", "attn", "embd")] == [0, 0.25, 0]
    import_model(str(tmp_path / "out"), tmp_path / "again")
    assert read_run(tmp_path / "again")[0].model.bias == "all"
    tokens = np.arange(64).reshape(2, 32)
    before, after = (logits_of(tmp_path / at)(tokens) for at in ("run", "again"))
    np.testing.assert_allclose(after, before, atol=1e-6)
    with pytest.raises(ConfigError, match="learned positions are for exactly 32 tokens"):
        export(tmp_path / "run", tmp_path / "longer", dtype="float32", max_length=64)


def test_what_has_no_class_is_refused_with_all_reasons(tmp_path):
    write_run(tmp_path / "run", tiny(model={"activation": "gelu_tanh", "bias": "all"}))
    with pytest.raises(ConfigError) as raised:
        export(tmp_path / "run", tmp_path / "out", dtype="float32")
    assert len(raised.value.problems) == 4  # and the way on
    for words in ("model.activation", "model.bias", "model.d_ff=128", "needs 256", "grow RUN"):
        assert words in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "step", "words"),
    [
        (None, 7, "Trained with gpt_pjit for 7 steps, 70 tokens."),
        (AVERAGED_IMPORT, 9, "of steps 5, 7; imported from gpt2."),
        (IMPORT, 0, "Origin of the weights, latest first: imported from gpt2."),
        (HUB, 0, "imported from openai-community/gpt2 at 607a30d."),
        ({"kind": "grow", "from": "a/580m"}, 7, "latest first: grown from 580m."),
    ],
)
def test_the_card_says_where_the_weights_come_from(source, step, words):
    assert history(step, 10 * step, source).endswith(words)


def test_results_of_another_checkpoint_are_refused(run, tmp_path):
    folder, _ = run
    settings = {"name": "m", "step": 3, "checkpoint": "there", "dtype": "", "tasks": {}}
    settings["fingerprint"] = fingerprint(folder / "checkpoints", 3)
    (tmp_path / "results.json").write_text(json.dumps({"settings": settings}))
    row = read_results(tmp_path / "results.json")
    export(folder / "checkpoints" / "3", tmp_path / "3", dtype="float32", results=row)
    match = "results.json has the results of another checkpoint, step 3 of there"
    with pytest.raises(ConfigError, match=match):
        export(folder, tmp_path / "5", dtype="float32", results=row)
    assert not (tmp_path / "5").exists()


def test_weights_that_are_not_finite_are_not_exported(run, tmp_path, monkeypatch):
    folder, params = run
    params[5]["norm_final"]["scale"][3] = np.inf
    with monkeypatch.context() as patch:  # our own runs save no such state
        patch.setattr("gpt_pjit.core.checkpoints.checkpointer._check_sound", lambda *_: None)
        write_state(tmp_path / "run" / "checkpoints", 7, {"params": params[5]})
    (tmp_path / "run" / "run.json").write_bytes((folder / "run.json").read_bytes())
    with pytest.raises(ConfigError, match=r"step 7 of .* holds NaN or infinity in norm_final"):
        export(tmp_path / "run", tmp_path / "out", dtype="float32")
    assert not (tmp_path / "out").exists()
