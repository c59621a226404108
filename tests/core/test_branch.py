"""A run that begins from a step of another, or changes by name, computes what it should."""

import json

import jax
import numpy as np
import pytest

from gpt_pjit.checkpoint_arrays import derived_workdir, read_arrays, saved_shapes, write_state
from gpt_pjit.core.checkpointer import Checkpointer, saved_steps
from gpt_pjit.core.errors import ConfigError, IntegrityError
from gpt_pjit.core.runtime import Origin, read_run
from gpt_pjit.core.sharding import paths_and_leaves
from gpt_pjit.core.tokens import BytesTokenizer, walks_of
from gpt_pjit.core.train import train
from tests.helpers import program_on, tiny, with_fields

STEPS, DECAY = 12, 4
STABLE = STEPS - DECAY
FIELDS = {
    "model.n_layers": 1,
    "model.d_model": 32,
    "model.d_ff": 32,
    "model.vocab_size": 288,
    "model.dropout_residual": 0.1,
    "data.text": "",
    "data.sequence_length": 16,
    "data.batch_size": 32,
    "optim.schedule": "constant",
    "optim.steps": STABLE,
    "optim.warmup_steps": 3,
    "optim.final_lr_fraction": 0.0,
    "eval.every": 100,
    "checkpoint.every": 4,
    "checkpoint.keep": 10,
    "log.every": 1,
}
WSD = {"optim.schedule": "wsd", "optim.steps": STEPS, "optim.decay_steps": DECAY}


@pytest.fixture
def run(make_set, tmp_path, capsys):
    """`run(name, {field: value}, origin)` trains; returns what was said."""
    sets = [make_set(4000, 50)[0], make_set(2500, 40)[0]]

    def run(name, fields=None, origin=None, allowed=()):
        fields = FIELDS | {"data.path": sets[0].path} | (fields or {})
        fields = {n: v(*sets) if callable(v) else v for n, v in fields.items()}
        config = with_fields(tiny(), fields)
        source = origin and Origin(tmp_path / origin[0], origin[1])
        assert train(config, tmp_path / name, None, None, source, allowed) == 0
        return capsys.readouterr().out

    run.folder = tmp_path
    return run


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def state(folder, step):
    directory = folder / "checkpoints"
    return dict(paths_and_leaves(read_arrays(directory, step, saved_shapes(directory, step))))


def assert_same_state(one, two, step):
    one, two = state(one, step), state(two, step)
    assert one.keys() == two.keys()
    for path, array in one.items():
        np.testing.assert_array_equal(array, two[path], path)


MESHES = [
    pytest.param((1, 32, 1), "zero", id="data 32, zero"),
    pytest.param((1, 8, 4), "fsdp", id="data 8 tensor 4, fsdp", marks=pytest.mark.slow),
    pytest.param((2, 16, 1), "ddp", id="replica 2 data 16, ddp", marks=pytest.mark.slow),
    pytest.param((1, 16, 2), "zero1", id="data 16 tensor 2, zero1", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("shape", "layout"), MESHES)
def test_a_decay_from_a_stable_step_is_that_of_the_unbroken_run_to_the_bit(run, shape, layout):
    mesh = dict(zip(("mesh.replica", "mesh.data", "mesh.tensor"), shape, strict=True))
    mesh |= {"partition.layout": layout}
    run("unbroken", WSD | mesh)
    run("trunk", mesh)
    said = run("branch", WSD | mesh, ("trunk", STABLE))
    unbroken, trunk, branch = (run.folder / name for name in ("unbroken", "trunk", "branch"))
    assert "from step 8 of" in said
    assert "optim.schedule 'constant' -> 'wsd'" in said
    assert losses(trunk) | losses(branch) == losses(unbroken)
    assert list(losses(branch)) == list(range(STABLE + 1, STEPS + 1))
    assert_same_state(trunk, unbroken, STABLE)
    assert_same_state(branch, unbroken, STEPS)
    assert read_run(branch)[1]["from"]["step"] == STABLE
    assert "this run is finished" in run("branch", WSD | mesh, ("trunk", STABLE))
