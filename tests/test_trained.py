"""A checkpoint is read as a model, by name, onto any mesh, without its optimizer state."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_pjit.core.checkpoints import write_state
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.model import forward
from gpt_pjit.core.sharding import make_mesh
from gpt_pjit.trained import find_checkpoint, load_trained
from tests.helpers import make_workdir, tiny
from tests.hf.ours import write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    config = tiny(partition={"layout": "zero1"}, mesh={"data": 32}, optim={"microbatches": 2})
    return folder, config, make_workdir(folder, config, steps=(2, 4))


@pytest.mark.parametrize("tensor", [1, 4])
def test_logits_are_those_of_the_newest_step_on_any_mesh(run, tensor):
    folder, config, params = run
    tokens = np.arange(32 * 16).reshape(32, 16) % 257
    with jax.set_mesh(make_mesh((1, 1, 1), jax.devices()[:1])):
        expected = forward(config.model, jax.tree.map(jnp.asarray, params[4]), jnp.asarray(tokens))
    trained = load_trained(folder, tensor=tensor)
    assert trained.step == 4
    assert trained.mesh.shape == {"replica": 1, "data": 32 // tensor, "tensor": tensor}
    with jax.set_mesh(trained.mesh):
        logits = jax.jit(trained.model.forward)(trained.weights, jnp.asarray(tokens))
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_one_step_and_another_dtype_can_be_asked_for(run):
    folder, _, params = run
    trained = load_trained(folder / "checkpoints" / "2", dtype="bfloat16")
    up = trained.weights["blocks"]["mlp"]["up"]["kernel"]
    assert up.dtype == jnp.bfloat16
    expected = params[2]["blocks"]["mlp"]["up"]["kernel"].astype(jnp.bfloat16)
    assert np.array_equal(np.asarray(up), expected)
    assert trained.weights["norm_final"]["scale"].dtype == jnp.float32


def test_a_wrong_path_says_what_there_is(run, tmp_path):
    folder, config, _ = run
    with pytest.raises(ConfigError, match=r"holds no step 3; it holds 2, 4"):
        find_checkpoint(folder / "checkpoints" / "3")
    with pytest.raises(ConfigError, match=r"nothing is not a folder; give the --workdir of a run"):
        find_checkpoint(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"has no run.json.*give the --workdir of a run"):
        find_checkpoint(tmp_path)
    (tmp_path / "damaged").mkdir()
    for content in ("", "[]", '{"config": {}}'):
        (tmp_path / "damaged" / "run.json").write_text(content)
        with pytest.raises(ConfigError, match=r"run.json is damaged"):
            find_checkpoint(tmp_path / "damaged")
    make_workdir(tmp_path / "empty", config, steps=())
    with pytest.raises(ConfigError, match=r"holds no checkpoint yet"):
        find_checkpoint(tmp_path / "empty")


@pytest.mark.parametrize("tensor", [0, -1, 3, "2"])
def test_what_the_model_cannot_be_is_said(run, tensor):
    with pytest.raises(ConfigError, match=r"must divide the model's 4 heads; try 1, 2, 4") as error:
        load_trained(run[0], tensor=tensor, dtype="int8")
    assert "dtype='int8': no such dtype; bfloat16 or float32" in str(error.value)


def test_a_damaged_step_is_refused_and_passed_over(tmp_path, capsys):
    write_run(tmp_path / "run", tiny(), (1, 2, 3))
    steps = tmp_path / "run" / "checkpoints"
    (steps / "3" / "default" / "manifest.ocdbt").unlink()
    assert find_checkpoint(tmp_path / "run") == (tmp_path / "run", 2)
    lacks = r"step 3 of .*run cannot be read: it lacks default/manifest.ocdbt; "
    assert re.match(f"warning: {lacks}trying the step before it", capsys.readouterr().err)
    with pytest.raises(ConfigError, match=f"{lacks}other steps here: 1, 2"):
        find_checkpoint(steps / "3")
    assert find_checkpoint(steps / "2") == (tmp_path / "run", 2)
    assert capsys.readouterr().err == ""
    for step in "12":
        (steps / step / "_CHECKPOINT_METADATA").unlink()
    with pytest.raises(ConfigError, match=r"it lacks default/manifest.*; no step here is whole"):
        find_checkpoint(tmp_path / "run")


def test_a_run_that_has_diverged_is_refused(tmp_path, monkeypatch):
    params = write_run(tmp_path / "run", tiny(), (1,))[1]
    params["blocks"]["mlp"]["up"]["kernel"][1, 2, 3] = np.nan
    with monkeypatch.context() as patch:  # our own runs save no such state
        patch.setattr("gpt_pjit.core.checkpoints.checkpointer._check_sound", lambda *_: None)
        write_state(tmp_path / "run" / "checkpoints", 2, {"params": params})
    match = r"step 2 of .*run holds NaN or infinity in blocks/mlp/up/kernel; other steps here: 1"
    with pytest.raises(ConfigError, match=match):
        load_trained(tmp_path / "run", tensor=2)


def test_another_tokenizer_is_refused(tmp_path):
    write_run(tmp_path / "run", tiny())
    record = tmp_path / "run" / "run.json"
    record.write_text(record.read_text().replace('"sha256": "', '"sha256": "0'))
    with pytest.raises(ConfigError, match=r"copy tokenizer.json or tokenizer.model"):
        load_trained(tmp_path / "run")
