"""Checkpoints in buckets, through TensorStore's own drivers, where no rename makes them count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_pjit.core.checkpoints import Checkpointer, missing_parts, saved_steps
from gpt_pjit.core.checkpoints.orbax_paths import COMMIT
from gpt_pjit.core.files import as_path
from tests.helpers import program_on, tiny

pytestmark = pytest.mark.slow
MANIFEST = "default/manifest.ocdbt"


@pytest.fixture(scope="module")
def training():
    return program_on(tiny(partition={"layout": "zero1"}), (1, 4, 2))


@pytest.fixture(scope="module")
def states(training):
    """The state of steps 1 to 4."""
    with jax.set_mesh(training.mesh):
        state = training.init(jax.random.key(1))
        return {step: state._replace(step=jnp.int32(step)) for step in range(1, 5)}


@pytest.fixture
def directory(bucket, request):
    return as_path(f"{bucket}/{request.node.originalname}/checkpoints")


def save(directory, states, *steps, keep=None):
    checkpointer = Checkpointer(directory, keep)
    for step in steps:
        checkpointer.save(step, states[step])
    checkpointer.close()


def test_a_state_is_restored_bit_for_bit_on_another_mesh(directory, training, states):
    with jax.set_mesh(training.mesh):
        save(directory, states, 1, 2, 3, keep=2)
    assert saved_steps(directory) == [2, 3]
    assert not (directory / "1").exists()
    other = program_on(tiny(partition={"layout": "zero1"}), (2, 2, 1))
    with jax.set_mesh(other.mesh):
        step, restored = Checkpointer(directory, None).restore_newest(other.state)
    assert step == 3
    for got, saved in zip(*map(jax.tree.leaves, (restored, states[3])), strict=True):
        assert np.array_equal(got, saved)


def test_a_step_without_its_last_file_does_not_count_and_is_removed(directory, training, states):
    with jax.set_mesh(training.mesh):
        save(directory, states, 1, 2)
        (directory / "2" / COMMIT).unlink()  # as a kill leaves it
        assert saved_steps(directory) == [1]
        checkpointer = Checkpointer(directory, None)
        assert checkpointer.restore_newest(training.state)[0] == 1
        assert not (directory / "2").exists()
        checkpointer.save(2, states[2])
        checkpointer.close()
    assert saved_steps(directory) == [1, 2]


def test_a_damaged_step_is_set_aside(directory, training, states, capsys):
    with jax.set_mesh(training.mesh):
        save(directory, states, 1, 2, 3)
        (directory / "3" / MANIFEST).unlink()
        assert missing_parts(directory, 3) == [MANIFEST]
        (directory / "2" / "default" / "_METADATA").write_bytes(b"damage")
        checkpointer = Checkpointer(directory, None)
        assert checkpointer.restore_newest(training.state)[0] == 1
        errors = capsys.readouterr().err
        assert f"step 3 of {directory.parent} cannot be read: it lacks {MANIFEST}" in errors
        assert f"step 2 of {directory.parent} cannot be read" in errors
        checkpointer.save(2, states[2])
        checkpointer.close()
    assert saved_steps(directory) == [1, 2]
    assert (directory / "3.damaged" / COMMIT).exists()
    assert (directory / "2.damaged" / MANIFEST).exists()
