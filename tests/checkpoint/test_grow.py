"""A deeper model that begins where the shallower one ended."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_pjit.checkpoint import command
from gpt_pjit.checkpoint.combine import grown_config, layer_sources
from gpt_pjit.checkpoint_arrays import read_arrays
from gpt_pjit.core.checkpoints import saved_steps
from gpt_pjit.core.errors import EXIT_DONE, ConfigError
from gpt_pjit.core.model import forward, param_shapes
from gpt_pjit.core.runtime import read_run
from gpt_pjit.core.sharding import make_mesh
from gpt_pjit.core.tokens import open_data
from gpt_pjit.core.train import Tools, train
from gpt_pjit.data import prepare_text
from gpt_pjit.generate import sample
from tests.helpers import BLOCKS, tiny, with_fields
from tests.hf.ours import write_run
from tests.processes import by_step


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (2, 4, [0, 0, 1, 1]),
        (4, 6, [0, 0, 1, 2, 2, 3]),
        (3, 4, [0, 0, 1, 2]),
        (1, 3, [0, 0, 0]),
        (2, 2, [0, 1]),
    ],
)
def test_each_layer_repeats_one_in_order(old, new, expected):
    assert layer_sources(old, new) == expected


def test_a_model_does_not_shrink():
    with pytest.raises(ConfigError, match=r"--layers=1: the model has 2, and can only grow"):
        layer_sources(2, 1)


@pytest.mark.parametrize("block", ["alibi", "gpt2", "neox", "windows"])
def test_the_grown_model_computes_the_same(tmp_path, call, block):
    windows = BLOCKS["nanochat"] | {"n_layers": 2}
    config = tiny(model=BLOCKS.get(block, windows))
    params = write_run(tmp_path / "run", config)[1]
    made = f"--out={tmp_path / 'grown'}"
    assert call("grow", tmp_path / "run", "--layers=5", made, "--noloss")[0] == EXIT_DONE
    grown, record = read_run(tmp_path / "grown")
    assert grown.model.n_layers == 5
    assert grown.model.windows == ((8, 8, 8, 0, 0) if block == "windows" else ())
    assert record["source"]["layers"] == [0, 0, 0, 1, 1]
    assert record["source"]["source"]["from"] == "a/test"  # what was grown had been imported
    shapes = param_shapes(grown.model, 32)
    deep = read_arrays(tmp_path / "grown" / "checkpoints", 0, {"params": shapes})["params"]
    up = deep["blocks"]["mlp"]["up"]["kernel"]
    assert np.array_equal(up[1], params["blocks"]["mlp"]["up"]["kernel"][0])
    tokens = jnp.asarray(np.arange(64).reshape(2, 32))
    with jax.set_mesh(make_mesh((1, 1, 1), jax.devices()[:1])):
        before, after = (
            forward(c.model, jax.tree.map(jnp.asarray, p), tokens)
            for c, p in ((config, params), (grown, deep))
        )
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_factors_by_layer_are_repeated_too():
    optim = {"lr_rules": (("blocks/.*", (0.5, 1.0)), (".*", 1.0)), "decay_rules": ((".*", 1),)}
    grown = grown_config(tiny(optim=optim), [0, 0, 1])
    assert grown.optim.lr_rules == (("blocks/.*", (0.5, 0.5, 1.0)), (".*", 1.0))
    assert grown.optim.decay_rules == ((".*", 1),)


def test_no_loss_is_reported_on_data_other_than_the_runs(tmp_path, call):
    (tmp_path / "text.txt").write_text("the quick brown fox " * 600)
    data = {"text": str(tmp_path / "text.txt"), "validation_split": "tail"}
    config = tiny(data=data | {"tokenizer": "bpe:300"})
    run = tmp_path / "run"
    write_run(run, config)
    _, output, _ = call("grow", run, "--layers=3", f"--out={tmp_path / 'untrained'}")
    assert "validation loss not measured: nothing has been trained here yet" in output
    record = json.loads((run / "run.json").read_text())
    identity = {"path": "", "tokenizer": "", "vocab_size": 257, "sha256": "the data's"}
    (run / "run.json").write_text(json.dumps(record | {"data": [identity]}))
    _, output, _ = call("grow", run, "--layers=3")
    assert "validation loss not measured: " in output
    assert not (run / "data").exists()
    prepare_text(config, run / "data")
    _, output, _ = call("grow", run, "--layers=3", f"--out={tmp_path / 'other'}")
    assert "validation loss not measured" in output
    assert "the run had" in output  # the tokenizer of bytes


def test_ctrl_c_while_the_loss_is_measured_keeps_the_workdir(tmp_path, call, monkeypatch):
    (tmp_path / "text.txt").write_text("the quick brown fox " * 600)
    data = {"text": str(tmp_path / "text.txt"), "validation_split": "tail", "tokenizer": "bytes"}
    config = tiny(data=data)
    write_run(tmp_path / "run", config)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    prepare_text(config, tmp_path / "run" / "data")
    record["data"] = open_data(config.data, tmp_path / "run" / "data", 512).identity()
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "held_out_metrics", stopped)
    code, output, _ = call("grow", tmp_path / "run", "--layers=3")
    assert code == EXIT_DONE
    assert "grown: 3 layers" in output
    assert "validation loss not measured: stopped" in output


@pytest.mark.slow
@pytest.mark.long
def test_training_continues_from_it_with_a_config_of_its_own(tmp_path, call):
    (tmp_path / "text.txt").write_text("the quick brown fox " * 600)
    data = {
        "text": str(tmp_path / "text.txt"),
        "validation_split": "tail",
        "tokenizer": "bytes",
        "batch_size": 32,
    }
    settings = {"data": data, "optim": {"steps": 12, "warmup_steps": 1, "peak_lr": 3e-3}}
    config = tiny(**settings, eval={"every": 12}, checkpoint={"every": 12}, log={"every": 12})
    assert train(config, tmp_path / "run", Tools(prepare_text, sample)) == 0
    # Of an average, which has no data of its own: those of the run.
    assert call("average", tmp_path / "run", "--last=1", "--json")[0] == EXIT_DONE
    made = f"--out={tmp_path / 'grown'}"
    _, output, _ = call("grow", tmp_path / "run" / "averaged", "--layers=3", made, "--json")
    losses = json.loads(output)["validation_loss"]
    assert losses["before"] == pytest.approx(losses["after"], abs=1e-5)
    assert losses["before"] < 4.5  # of 5.5 for equal chances
    assert not (tmp_path / "run" / "averaged" / "data").exists()
    with pytest.raises(ConfigError, match=r"model.n_layers=2: the run in .* has 3"):
        train(config, tmp_path / "grown", Tools(prepare_text, sample))
    deeper = with_fields(config, {"model.n_layers": 3, "optim.peak_lr": 1e-3, "eval.every": 1})
    deeper = with_fields(deeper, {"optim.steps": 2})
    assert train(deeper, tmp_path / "grown", Tools(prepare_text, sample)) == 0
    assert saved_steps(tmp_path / "grown" / "checkpoints") == [0, 2]
    first = next(iter(by_step(tmp_path / "grown", "validation/loss").values()))
    assert first < losses["before"] + 0.1
    _, record = read_run(tmp_path / "grown")
    assert record["source"]["kind"] == "grow"
    assert record["data"][0]["sha256"]
