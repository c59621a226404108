"""The mean of checkpoints: of the right steps, exact in float32, a run that goes on."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from gpt_pjit.checkpoint import Checkpointer, __main__ as command_line
from gpt_pjit.checkpoint.average import mean_params, steps_to_average
from gpt_pjit.errors import ConfigError
from gpt_pjit.model import param_shapes
from gpt_pjit.runtime import open_workdir, read_run
from gpt_pjit.trained import load_trained
from tests.helpers import make_workdir, program_on, tiny
from tests.hf.ours import write_run

STEPS = (60, 80, 85, 90, 100)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("average") / "run"
    return folder, make_workdir(folder, tiny(), STEPS)


def call(monkeypatch, command, path, **flags):
    """A command as the command line calls it, `flags` instead of absl's."""
    given = {"_LAST": 4, "_FRACTION": 0.2, "_STEPS": None, "_LOSS": False, "_OUT": None}
    for name, value in (given | {f"_{k.upper()}": v for k, v in flags.items()}).items():
        monkeypatch.setattr(command_line, name, SimpleNamespace(name=name, value=value))
    return command_line.COMMANDS[command](path)


@pytest.mark.parametrize(
    ("saved", "last", "fraction", "expected"),
    [
        (range(20, 801, 20), 4, 0.2, [680, 720, 760, 800]),
        (range(20, 801, 20), 8, 0.2, [660, 680, 700, 720, 740, 760, 780, 800]),
        (range(20, 801, 20), 3, 0.2, [700, 760, 800]),
        (range(20, 801, 20), 2, 1.0, [400, 800]),
        ((1, 5, 99, 100), 2, 0.2, [99, 100]),
        ((7,), 1, 0.2, [7]),
    ],
)
def test_steps_are_spread_evenly_over_the_end(saved, last, fraction, expected):
    assert steps_to_average(saved, last, fraction) == expected


def test_too_few_checkpoints_are_refused():
    message = r"the last 20% of 800 steps holds 1 checkpoints, 800; --last=4 needs"
    with pytest.raises(ConfigError, match=message):
        steps_to_average((400, 800), 4, 0.2)


def test_the_mean_is_that_of_numpy(run):
    folder, params = run
    config, _ = read_run(folder)
    shapes = param_shapes(config.model, config.data.sequence_length)
    mean = mean_params(folder / "checkpoints", (60, 85, 100), shapes)
    expected = jax.tree.map(
        lambda *arrays: np.mean([a.astype(np.float64) for a in arrays], axis=0),
        *(params[step] for step in (60, 85, 100)),
    )
    assert jax.tree.structure(mean) == jax.tree.structure(expected)
    for got, wanted in zip(jax.tree.leaves(mean), jax.tree.leaves(expected), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-9)


def test_the_result_is_a_run_that_goes_on_from_the_newest_state(run, tmp_path, monkeypatch):
    folder, params = run
    out = tmp_path / "averaged"
    record, _ = call(monkeypatch, "average", folder, last=2, out=out)
    assert record["steps"] == [90, 100]
    config, made = read_run(out)
    assert made["source"]["steps"] == [90, 100]
    assert made["source"]["from"] == str(folder)
    before = json.loads((folder / "run.json").read_text())
    assert {name: made[name] for name in before} == before
    program = program_on(config, (1, 1, 1))
    newest = Checkpointer(folder / "checkpoints", None).restore(100, program.state)
    state = Checkpointer(out / "checkpoints", None).restore(100, program.state)
    assert int(state.step) == 100
    for got, wanted in zip(
        jax.tree.leaves(state.opt_state), jax.tree.leaves(newest.opt_state), strict=True
    ):
        assert np.array_equal(got, wanted)
    scale = state.params["embed"]["embedding"]
    expected = (params[90]["embed"]["embedding"] + params[100]["embed"]["embedding"]) / 2
    np.testing.assert_allclose(scale, expected, rtol=1e-6)
    open_workdir(out, config)  # the run's own config goes on with it
    assert load_trained(out).step == 100


def test_nothing_is_left_of_an_average_that_fails(run, tmp_path, monkeypatch):
    folder, _ = run

    def broken(*_):
        raise OSError("disk full")

    with pytest.raises(ConfigError, match="has no step 61, x; it has 60, 80, 85, 90, 100"):
        call(monkeypatch, "average", folder, steps=["60", "61", "x"], out=tmp_path / "new")
    monkeypatch.setattr(command_line, "mean_params", broken)
    with pytest.raises(OSError, match="disk full"):
        call(monkeypatch, "average", folder, steps=["60", "80"], out=tmp_path / "new")
    assert not list(tmp_path.iterdir())
    (tmp_path / "new").write_text("something")
    with pytest.raises(ConfigError, match="is there already"):
        call(monkeypatch, "average", folder, steps=["60"], out=tmp_path / "new")


def test_list_tells_of_unfinished_checkpoints(run, monkeypatch, tmp_path):
    config = tiny()
    write_run(tmp_path / "run", config, (1, 2))
    steps = tmp_path / "run" / "checkpoints"
    (steps / "3.orbax-checkpoint-tmp-7").mkdir()
    (steps / "2" / "default" / "manifest.ocdbt").unlink()
    record, _ = call(monkeypatch, "list", tmp_path / "run")
    found = [(c["step"], c["complete"]) for c in record["checkpoints"]]
    assert found == [(1, True), (2, False), (3, False)]
    assert record["checkpoints"][0]["size"] > 100_000
    assert record["source"]["from"] == "a/test"
