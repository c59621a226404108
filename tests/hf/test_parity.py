"""What transformers computed of tiny checkpoints (reference.npz), we compute after an import; and
an export of the import is the same tensors again.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from gpt_pjit.checkpoint_arrays import read_arrays
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.model import param_shapes, rotary_frequencies
from gpt_pjit.core.runtime import read_run
from gpt_pjit.hf import export, import_model
from gpt_pjit.hf.importing import stored_tensors
from tests.hf.checkpoints import (
    LONGEST,
    MODELS,
    N_NEW,
    REFERENCE,
    SOME,
    TRAINED,
    some_tokens,
    write_checkpoint,
    write_weights,
)
from tests.hf.ours import greedy, logits_of


@pytest.fixture(scope="module")
def reference():
    with np.load(REFERENCE) as arrays:
        return dict(arrays)


def test_logits_after_import_beyond_the_trained_context(name, imported, reference):
    logits = logits_of(imported)(some_tokens())[:, SOME]
    assert np.abs(logits - reference[f"{name}.logits"]).max() < 1e-4
    assert np.abs(reference[f"{name}.logits"]).max() > 1


def test_greedy_text_after_import(name, imported, reference):
    new = greedy(logits_of(imported), some_tokens()[:, :8], N_NEW)
    assert np.array_equal(new, reference[f"{name}.greedy"])


def test_an_export_of_an_import_is_the_same_model(name, theirs, imported, tmp_path):
    if name == "opt":
        pytest.skip("exported as a GPT-2")
    longest = LONGEST if MODELS[name].sequence_length == TRAINED else None
    done = export(imported, tmp_path / "again", dtype="float32", max_length=longest)
    before, after = stored_tensors(theirs), stored_tensors(tmp_path / "again")
    assert before.keys() == after.keys()
    for tensor, stored in before.items():
        assert np.array_equal(stored.read(), after[tensor].read()), tensor
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        old, new = ((at / file).read_text() for at in (theirs, tmp_path / "again"))
        assert json.loads(old) == json.loads(new)
    assert done["max_length"] == LONGEST


def test_sizes_and_tokenizer_are_found_again(name, imported):
    hf_model = MODELS[name]
    config, record = read_run(imported)
    assert config.model == replace(hf_model.model, dtype="float32")  # as transformers computes
    assert config.data.sequence_length == hf_model.sequence_length
    assert record["tokenizer"]["vocab_size"] == 257
    assert not (imported / "tokenizer.json").exists()  # it was seen to be that of bytes


def test_names_and_leftovers_of_the_hubs_gpt2(theirs, tmp_path, name, reference):
    """Without `transformer.`, with the masks that old versions stored, and lm_head."""
    if name != "gpt2":
        pytest.skip("GPT-2 only")
    tensors = {k.removeprefix("transformer."): t.read() for k, t in stored_tensors(theirs).items()}
    tensors["h.0.attn.bias"] = np.tri(96)[None, None]
    tensors["h.0.attn.masked_bias"] = np.array(-1e4)
    tensors["lm_head.weight"] = tensors["wte.weight"]
    hub = tmp_path / "hub"
    hub.mkdir()
    config = json.loads((theirs / "config.json").read_text())
    kept = ("model_type", "n_layer", "n_head", "n_embd", "n_positions", "n_inner", "vocab_size")
    (hub / "config.json").write_text(json.dumps({k: config[k] for k in kept}))
    (hub / "tokenizer.json").write_bytes((theirs / "tokenizer.json").read_bytes())
    write_weights(hub, tensors, shard_bytes=20_000)
    assert len(list(hub.glob("model-*.safetensors"))) > 2
    import_model(str(hub), tmp_path / "run")
    logits = logits_of(tmp_path / "run")(some_tokens())[:, SOME]
    assert np.abs(logits - reference["gpt2.logits"]).max() < 1e-4


# The word that some files leave out, what old versions stored beside the weights, and a tensor.
OLD_FILES = {
    "neox": ("gpt_neox.", "layers.1.attention", "layers.1.mlp.dense_h_to_4h.weight"),
    "llama-4-2": ("model.", "layers.1.self_attn", "layers.1.mlp.up_proj.weight"),
    "opt": ("model.", None, "decoder.layers.1.fc1.weight"),
}


@pytest.mark.parametrize(
    ("model", "dtype"), [("neox", "float16"), ("llama-4-2", "bfloat16"), ("opt", "float16")]
)
def test_names_leftovers_and_dtypes_of_the_hubs_others(tmp_path, model, dtype):
    first, attention, some = OLD_FILES[model]
    hub = write_checkpoint(tmp_path / "hub", model)
    tensors = {
        name.removeprefix(first): tensor.read().astype(dtype)
        for name, tensor in stored_tensors(hub).items()
    }
    if attention:
        frequencies = rotary_frequencies(MODELS[model].model)[0, 0].astype(dtype)
        tensors[f"{attention}.rotary_emb.inv_freq"] = frequencies
    if model == "neox":
        tensors[f"{attention}.bias"] = np.tri(96, dtype=bool)[None, None]
        tensors[f"{attention}.masked_bias"] = np.array(-1e9, np.float32)
        tensors["lm_head.weight"] = tensors.pop("embed_out.weight")  # as version 5 names it
    save_file(tensors, hub / "model.safetensors", metadata={"format": "pt"})
    import_model(str(hub), tmp_path / "run")
    config, _ = read_run(tmp_path / "run")
    shapes = {"params": param_shapes(config.model, config.data.sequence_length)}
    blocks = read_arrays(tmp_path / "run" / "checkpoints", 0, shapes)["params"]["blocks"]
    assert np.array_equal(blocks["mlp"]["up"]["kernel"][1], tensors[some].astype(np.float32).T)
    if attention:
        tensors[f"{attention}.rotary_emb.inv_freq"] = 2 * frequencies
        save_file(tensors, hub / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ConfigError, match="inv_freq has other frequencies"):
            import_model(str(hub), tmp_path / "again")
