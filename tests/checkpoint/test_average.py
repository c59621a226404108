"""The mean of checkpoints: of the right steps, exact in float32, a run that continues."""

import json
import re

import jax
import numpy as np
import pytest

from gpt_pjit.checkpoint import command
from gpt_pjit.checkpoint.combine import mean_params, steps_to_average
from gpt_pjit.core.checkpoints import restore
from gpt_pjit.core.errors import EXIT_CONFIG, EXIT_DONE, EXIT_FAULT, EXIT_INTEGRITY, ConfigError
from gpt_pjit.core.model import param_shapes
from gpt_pjit.core.runtime import open_workdir, read_run
from gpt_pjit.trained import load_trained
from tests.helpers import begin, make_workdir, program_on, tiny
from tests.hf.ours import write_run

STEPS = (60, 80, 85, 90, 100)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("average") / "run"
    return folder, make_workdir(folder, tiny(), STEPS)


@pytest.mark.parametrize(
    ("saved", "last", "fraction", "expected"),
    [
        (range(20, 801, 20), 4, 0.2, [680, 720, 760, 800]),
        (range(20, 801, 20), 8, 0.2, [660, 680, 700, 720, 740, 760, 780, 800]),
        (range(20, 801, 20), 3, 0.2, [700, 760, 800]),
        (range(20, 801, 20), 2, 1.0, [400, 800]),
        ((1, 5, 99, 100), 2, 0.2, [99, 100]),
        ((7,), 1, 0.2, [7]),
        ((700, 800), 1, 0.0, [800]),
        ((101, 1000), 2, 0.9, [101, 1000]),
    ],
)
def test_steps_are_spread_evenly_over_the_end(saved, last, fraction, expected):
    assert steps_to_average(saved, last, fraction) == expected


def test_too_few_checkpoints_are_refused():
    message = r"the last 20% of 800 steps has 1 checkpoints, not 4; use a larger --fraction"
    with pytest.raises(ConfigError, match=message):
        steps_to_average((400, 800), 4, 0.2)
    with pytest.raises(ConfigError, match="the last 90% of 1000 steps has 1 checkpoints, not 2"):
        steps_to_average((100, 1000), 2, 0.9)


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


def test_the_result_is_a_run_that_continues_from_the_newest_state(run, tmp_path, call):
    folder, params = run
    out = tmp_path / "averaged"
    code, output, _ = call("average", "--last", 2, folder, f"--out={out}", "--noloss", "--json")
    record = json.loads(output)
    assert (code, record["steps"], record["validation_loss"]) == (EXIT_DONE, [90, 100], None)
    config, made = read_run(out)
    assert made["source"]["steps"] == [90, 100]
    assert made["source"]["from"] == str(folder)
    before = json.loads((folder / "run.json").read_text())
    assert {name: made[name] for name in before} == before
    program = program_on(config, (1, 1, 1))
    newest = restore(folder / "checkpoints", 100, program.state)
    state = restore(out / "checkpoints", 100, program.state)
    for got, wanted in zip(
        jax.tree.leaves(state.opt_state), jax.tree.leaves(newest.opt_state), strict=True
    ):
        assert np.array_equal(got, wanted)
    scale = state.params["embed"]["embedding"]
    expected = (params[90]["embed"]["embedding"] + params[100]["embed"]["embedding"]) / 2
    np.testing.assert_allclose(scale, expected, rtol=1e-6)
    open_workdir(out, config)  # the run's own config continues it
    assert load_trained(out).step == 100


def test_nothing_is_left_of_an_average_that_fails(run, tmp_path, monkeypatch, call):
    folder, _ = run
    new = f"--out={tmp_path / 'new'}"

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr(command, "mean_params", broken)
    code, _, error = call("average", folder, "--steps=60,80", new)
    assert (code, "new cannot be written: disk full" in error) == (EXIT_FAULT, True)
    assert not list(tmp_path.iterdir())
    (tmp_path / "new").write_text("something")
    assert "already exists" in call("average", folder, new)[2]


def test_list_tells_of_unfinished_checkpoints(tmp_path, call, monkeypatch):
    config = tiny()
    write_run(tmp_path / "run", config, (1, 2))
    steps = tmp_path / "run" / "checkpoints"
    (steps / "3.orbax-checkpoint-tmp-7").mkdir()
    (steps / "2" / "default" / "manifest.ocdbt").unlink()
    code, output, _ = call("list", "--json", tmp_path / "run")
    assert code == EXIT_DONE
    record = json.loads(output)
    found = [(c["step"], c["complete"]) for c in record["checkpoints"]]
    assert found == [(1, True), (2, False), (3, False)]
    assert record["checkpoints"][0]["size"] > 100_000
    assert record["source"]["from"] == "a/test"
    assert "\nweights: imported from test\n" in call("list", tmp_path / "run")[1]

    def pruned(*_):
        raise FileNotFoundError

    monkeypatch.setattr("pathlib.Path.rglob", pruned)  # by the run, at this moment
    assert json.loads(call("list", "--json", tmp_path / "run")[1])["checkpoints"] == []


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("average", "--last=2"), "the following arguments are required: DIR"),
        (("average", "RUN", "--last=0"), "'0' is not a positive integer"),
        (("average", "RUN", "--layers=3"), "unrecognized arguments: --layers=3"),
        (("average", "RUN", "--steps="), "invalid steps value: ''"),
        (("average", "RUN", "--steps=60,x"), "invalid steps value: '60,x'"),
        (
            ("average", "RUN", "--steps=60,61"),
            "no complete steps [61]; it has [60, 80, 85",
        ),
        (("average", "RUN/checkpoints/60"), "is one step, but average takes a run; give"),
        (("list", "RUN/checkpoints/60"), "is one step, but list takes a run; give"),
        (("list", "nowhere"), "nowhere is not a folder; give the --workdir"),
        (("grow", "RUN"), "the following arguments are required: --layers"),
        (("grow", "RUN", "--layers=1"), "the model has 2, and can only grow; try 3"),
        (("shrink", "RUN"), "invalid choice: 'shrink'"),
    ],
)
def test_a_mistake_is_one_message(run, call, command, says):
    code, output, error = call(*(word.replace("RUN", str(run[0])) for word in command))
    assert (code, output) == (EXIT_CONFIG, "")
    assert says in error


def test_help_is_not_a_mistake(call):
    code, output, _ = call("average", "--help")
    assert code == EXIT_DONE
    assert "--fraction" in output


def test_a_run_may_lie_in_a_folder_named_checkpoints(tmp_path, call):
    write_run(tmp_path / "checkpoints" / "580m", tiny(), (1, 2))
    code, output, _ = call("list", tmp_path / "checkpoints" / "580m", "--json")
    assert (code, len(json.loads(output)["checkpoints"])) == (EXIT_DONE, 2)


def test_damage_inside_a_file_is_one_message(tmp_path, call):
    write_run(tmp_path / "run", tiny(), (1, 2))
    files = (tmp_path / "run" / "checkpoints" / "2").rglob("d/*")
    largest = max(files, key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    two = tmp_path / "run" / "checkpoints" / "2"
    code, output, error = call("grow", two, "--layers=3", "--noloss")
    assert (code, output) == (EXIT_INTEGRITY, "")
    assert re.search(r"step 2 of .*run cannot be read: .*OUT_OF_RANGE", error)
    assert error.endswith("; other steps here: 1\n")
    assert load_trained(tmp_path / "run").step == 1
    code, output, error = call("grow", tmp_path / "run", "--layers=3", "--noloss")
    assert (code, "from layers [0, 0, 1] of step 1" in output) == (EXIT_DONE, True)
    assert "step 2 of" in error


def test_weights_without_optimizer_state_have_no_mean(tmp_path, call):
    config = tiny()
    write_run(tmp_path / "run", config, (0, 4))
    assert (
        "has a single checkpoint: nothing has been trained" in call("average", tmp_path / "run")[2]
    )
    begin(tmp_path / "run", config)
    code, _, error = call("average", tmp_path / "run", "--steps=0", "--noloss")
    assert code == EXIT_INTEGRITY
    assert "cannot be read: it lacks opt_state" in error
    assert not (tmp_path / "run" / "averaged").exists()
