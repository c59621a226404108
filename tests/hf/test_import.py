"""Imports: what is refused, named in one message, and what may be left out of a file."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.runtime import read_run
from gpt_pjit.hf import import_model
from gpt_pjit.hf.models import from_json
from tests.hf.checkpoints import write_checkpoint

WTE = "transformer.wte.weight"


def test_an_import_names_every_tensor_that_is_wrong(tmp_path):
    folder = write_checkpoint(tmp_path / "theirs", "mpt-4")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layers": 3, "vocab_size": 400}))
    with pytest.raises(ConfigError) as raised:
        import_model(str(folder), tmp_path / "run")
    assert len(raised.value.problems) == 1 + 6  # the embedding, and the parts of a third layer
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 256}))
    with pytest.raises(ConfigError, match="vocab_size=256: is smaller than the 257 ids of bytes"):
        import_model(str(folder), tmp_path / "run")
    (folder / "config.json").write_text("[1]")
    with pytest.raises(ConfigError, match=r"config.json is damaged: not a JSON object"):
        import_model(str(folder), tmp_path / "run")
    assert "wte.weight: expected shape (400, 32), got (264, 32)" in str(raised.value)
    (folder / "config.json").write_text(json.dumps(config))
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    with pytest.raises(ConfigError, match=r"is missing, damaged or cut short"):
        import_model(str(folder), tmp_path / "run")
    # As many bytes as the file has, but not as the tensors take.
    weights.write_bytes(whole.replace(b'"F32"', b'"F16"', 1))
    with pytest.raises(ConfigError, match=r"is missing, damaged or cut short"):
        import_model(str(folder), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"revision='main': is of the hub, but .* is a folder"):
        import_model(str(folder), tmp_path / "run", "main")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "bert"}, "model_type='bert': unknown; known: mpt, gpt2"),
        ({"model_type": ["mpt"]}, r"model_type=\['mpt'\]: unknown; known: mpt, gpt2"),
        ({"attn_config": {"clip_qkv": 6}}, "attn_config.clip_qkv=6: our model supports only None"),
        ({"trained_sequence_length": "x"}, "trained_sequence_length='x': must be a positive"),
        (
            {"attn_config": {"alibi": False}},
            "attn_config.alibi=False: our model supports only True",
        ),
        ({"d_model": None}, "d_model=None: must be a positive integer"),
        ({"n_heads": 5}, "model.d_model=32: must be divisible by model.n_heads=5"),
    ],
)
def test_a_config_that_ours_does_not_support_is_refused(fields, message):
    mpt = {"n_layers": 2, "n_heads": 4, "d_model": 32, "vocab_size": 264, "max_seq_len": 96}
    with pytest.raises(ConfigError, match=message):
        from_json({"model_type": "mpt", **mpt, **fields}, "config.json")


def test_a_width_of_gpt2_must_be_a_number():
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": 264, "n_positions": 96}
    assert from_json({"model_type": "gpt2", **sizes, "n_inner": None}, "").model.d_ff == 128
    with pytest.raises(ConfigError, match="n_inner='x': must be a positive integer"):
        from_json({"model_type": "gpt2", **sizes, "n_inner": "x"}, "")


def test_the_commit_of_the_hub_is_recorded(tmp_path, monkeypatch):
    """Of what `main` is today, and nothing is fetched for a folder that already exists."""
    theirs = write_checkpoint(tmp_path / "snapshots" / "0a1b2c", "mpt-4")
    fetched = []

    def fetch(name, **wanted):
        fetched.append((name, wanted["revision"]))
        return str(theirs)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    import_model("someone/model", tmp_path / "run", "main")
    assert read_run(tmp_path / "run")[1]["source"]["revision"] == "0a1b2c"
    with pytest.raises(ConfigError, match="already exists"):
        import_model("someone/model", tmp_path / "run", "main")
    assert fetched == [("someone/model", "main")]


@pytest.fixture
def change(tmp_path):
    """`change(tensors)` imports a GPT-2 with these tensors added or replaced; its workdir."""

    def change(tensors, **fields):
        folder = write_checkpoint(tmp_path / "theirs", "gpt2")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | fields))
        file = folder / "model.safetensors"
        save_file(load_file(file) | tensors, file, metadata={"format": "pt"})
        import_model(str(folder), tmp_path / "run")
        return tmp_path / "run"

    return change


@pytest.fixture
def embedding(tmp_path):
    return load_file(write_checkpoint(tmp_path / "first", "gpt2") / "model.safetensors")[WTE]


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("lm_head.weight", lambda e: e[::-1].copy(), "lm_head.weight differs from transformer.wte"),
        ("lm_head.weight", lambda e: e[:-1].copy(), "lm_head.weight differs from transformer.wte"),
        ("wte.weight", lambda e: e * 2, "tensor wte.weight is not part of this model"),
        ("score.weight", lambda e: e[:2].copy(), "score.weight is not part of this model"),
        ("transformer.h.0.attn.bias", lambda e: np.ones((1, 1, 8, 8), bool), "not the causal mask"),
        ("transformer.h.0.attn.bias", lambda e: np.ones(3, bool), "not the causal mask"),
        ("h.1.attn.masked_bias", lambda e: np.array(-1.0), "not the causal mask"),
        (WTE, lambda e: np.where(e == e.max(), np.nan, e), "wte.weight holds NaN or infinity"),
        (WTE, lambda e: e.astype(np.float64), "wte.weight: expected F32 or BF16 or F16, got F64"),
    ],
)
def test_no_tensor_is_left_out_in_silence(change, embedding, tmp_path, name, make, message):
    with pytest.raises(ConfigError, match=message):
        change({name: make(embedding)})
    assert not (tmp_path / "run").exists()


def test_a_tensor_equal_to_what_stands_for_it_is_left_out(change, embedding):
    masks = {"transformer.h.1.attn.bias": np.tri(96, dtype=np.uint8)[None, None]}
    masks["transformer.h.1.attn.masked_bias"] = np.array(-1e9, np.float32)
    assert change({"lm_head.weight": embedding, **masks}).is_dir()


@pytest.mark.parametrize(
    ("stored", "computed"),
    [("float16", "float32"), ("bfloat16", "bfloat16"), ("float32", "float32"), (None, "float32")],
)
def test_weights_are_computed_with_in_no_coarser_dtype(change, embedding, stored, computed):
    array = embedding.astype(ml_dtypes.bfloat16 if stored == "bfloat16" else stored or np.float32)
    workdir = change({WTE: array}, dtype=stored, torch_dtype=stored)
    assert read_run(workdir)[0].model.dtype == computed


@pytest.mark.parametrize(("rows", "right"), [(514, True), (515, False), (50_257, False)])
def test_a_tokenizer_far_smaller_than_the_vocabulary_is_refused(
    change, embedding, rows, right, tmp_path
):
    """Rows of padding are usual; bytes have 257 ids."""
    tensors = {WTE: np.resize(embedding, (rows, embedding.shape[1]))}
    if right:
        assert change(tensors, vocab_size=rows).is_dir()
        return
    message = rf"vocab_size={rows}: is far larger than the 257 ids of bytes beside it; fetch the"
    with pytest.raises(ConfigError, match=message):
        change(tensors, vocab_size=rows)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_a_model_says_what_it_is(tmp_path):
    folder = write_checkpoint(tmp_path / "theirs", "gpt2")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    command = r"python -c .*from_pretrained\('.*/theirs'\).save_pretrained\('NEW'\)"
    with pytest.raises(
        ConfigError, match=rf"has no model.safetensors; .* a Python pickle.*{command}"
    ):
        import_model(str(folder), tmp_path / "run")
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"theirs has no config.json, so it is not a model"):
        import_model(str(folder), tmp_path / "run")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_json_that_is_nested_too_deeply_is_one_sentence(tmp_path, file):
    folder = write_checkpoint(tmp_path / "theirs", "gpt2")
    (folder / file).write_text('{"a":' * 1100 + "1" + "}" * 1100)
    with pytest.raises(ConfigError, match=r"damaged"):
        import_model(str(folder), tmp_path / "run")


def test_weights_stored_twice_are_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "theirs", "gpt2")
    shard = folder / "model-00001-of-00001.safetensors"
    shard.write_bytes((folder / "model.safetensors").read_bytes())
    index = {"weight_map": {WTE: shard.name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"has model.safetensors as well as the files of"):
        import_model(str(folder), tmp_path / "run")
