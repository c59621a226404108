"""Saving and restoring: on any mesh, in any folder, and nothing counts that is not whole."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_pjit.core.checkpointer import Checkpointer, newest_step, restore_params, saved_steps
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.orbax_paths import orbax_folder
from tests.helpers import program_on, tiny

MANIFEST = "default/manifest.ocdbt"
STATE = {"a": jnp.arange(8.0), "b": {"c": jnp.int32(3)}}
TARGET = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), STATE)


def save(directory, *steps, keep=None):
    checkpointer = Checkpointer(directory, keep)
    for step in steps:
        checkpointer.save(step, STATE | {"a": STATE["a"] + step})
    checkpointer.close()


def values_of(directory, step):
    checkpointer = Checkpointer(directory, None)
    restored = checkpointer.restore(step, TARGET)
    checkpointer.close()
    return np.asarray(restored["a"])


def test_a_state_is_restored_bit_for_bit_on_another_mesh(tmp_path):
    config = tiny(partition={"layout": "zero1"})
    before, after = program_on(config, (1, 4, 2)), program_on(config, (2, 2, 1))
    with jax.set_mesh(before.mesh):
        state = before.init(jax.random.key(1))
        checkpointer = Checkpointer(tmp_path, None)
        checkpointer.save(5, state)
        checkpointer.close()
    with jax.set_mesh(after.mesh):
        restored = Checkpointer(tmp_path, None).restore(5, after.state)
    for got, saved, target in zip(
        *map(jax.tree.leaves, (restored, state, after.state)), strict=True
    ):
        assert np.array_equal(got, saved)
        assert (got.dtype, got.sharding) == (target.dtype, target.sharding)


def test_the_newest_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4, keep=2)
    assert saved_steps(tmp_path) == [3, 4]
    save(tmp_path, 5, keep=2)  # those of an earlier start count too
    assert saved_steps(tmp_path) == [4, 5]
    save(tmp_path, 6, 7)
    assert saved_steps(tmp_path) == [4, 5, 6, 7]
    assert newest_step(tmp_path) == 7
    assert newest_step(tmp_path / "nothing") is None


@pytest.mark.parametrize("name", ["run[1]", "a*b?", "my run", "~", "Größe", "q%20#x", "-x", "s3"])
def test_a_folder_of_any_name_holds_checkpoints(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / name, Path(name, "relative")):
        save(folder / "checkpoints", 1, 2)
        assert values_of(folder / "checkpoints", 2)[0] == 2
    (tmp_path / "link").symlink_to(name)
    assert values_of(tmp_path / "link" / "checkpoints", 2)[0] == 2


def test_a_folder_named_like_a_bucket_is_local():
    assert str(orbax_folder(Path("/s3/runs")) / "checkpoints") == "/s3/runs/checkpoints"


def test_half_written_steps_do_not_count(tmp_path, capsys):
    save(tmp_path, 1, 2, 3)
    (tmp_path / "4.orbax-checkpoint-tmp-7").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "5").write_text("a file")
    assert saved_steps(tmp_path) == [1, 2, 3]
    (tmp_path / "3" / MANIFEST).unlink()
    assert newest_step(tmp_path) == 2
    assert "step 3 of" in capsys.readouterr().err
    (tmp_path / "5").unlink()
    # A run resumes from step 2, and saves and prunes as if step 3 had never been.
    save(tmp_path, 3, 4, keep=2)
    assert saved_steps(tmp_path) == [3, 4]
    assert values_of(tmp_path, 4)[0] == 4
    assert (tmp_path / "3.damaged").is_dir()


def test_a_run_whose_steps_are_all_damaged_does_not_start_over(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "1" / "_CHECKPOINT_METADATA").unlink()
    with pytest.raises(ConfigError, match=r"step 1 of .* is damaged: it lacks _CHECKPOINT_METADA"):
        Checkpointer(tmp_path, None)


def test_what_cannot_be_restored_is_one_sentence(tmp_path):
    one = {"a": STATE["a"]}  # Orbax abandons its other reads when one fails, and they complain
    target = {"a": TARGET["a"]}
    checkpointer = Checkpointer(tmp_path, None)
    for step in (1, 2):
        checkpointer.save(step, {"params": one})
    checkpointer.wait()
    for file in (tmp_path / "2").rglob("d/*"):
        file.write_bytes(b"")
    message = r"step 2 of .* cannot be read: .*other steps here: 1"
    with pytest.raises(ConfigError, match=message):
        checkpointer.restore(2, {"params": target})
    with pytest.raises(ConfigError, match=message):
        restore_params(tmp_path, 2, target)
    assert np.array_equal(restore_params(tmp_path, 1, target)["a"], one["a"])
    checkpointer.close()


def test_what_a_step_does_not_hold_or_holds_in_another_shape_is_named(tmp_path):
    checkpointer = Checkpointer(tmp_path, None)
    checkpointer.save(1, {"a": STATE["a"]})
    checkpointer.wait()
    with pytest.raises(ConfigError, match=r"step 1 of .* cannot be read: it lacks b/c "):
        checkpointer.restore(1, TARGET)
    larger = jax.ShapeDtypeStruct((16,), jnp.float32, sharding=STATE["a"].sharding)
    with pytest.raises(ConfigError, match=r"step 1 of .* cannot be read: .*shape"):
        checkpointer.restore(1, {"a": larger})
    checkpointer.close()


@pytest.mark.parametrize("then", ["close", "save"])
def test_a_write_that_fails_in_the_background_is_raised(tmp_path, then, monkeypatch):
    checkpointer = Checkpointer(tmp_path, None)
    checkpointer.save(1, STATE)
    checkpointer.wait()
    merge = "orbax.checkpoint._src.serialization.ocdbt_utils.merge_ocdbt_per_process_files"

    async def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merge, full)
    checkpointer.save(2, STATE)
    with pytest.raises(ConfigError, match=r"step 2 of .* was not saved: .*No space left on device"):
        checkpointer.close() if then == "close" else checkpointer.save(3, STATE)
    assert newest_step(tmp_path) == 1


def test_a_save_counts_once_its_parts_are_there(tmp_path, monkeypatch):
    async def nothing(*_, **__):
        pass

    merge = "orbax.checkpoint._src.serialization.ocdbt_utils.merge_ocdbt_per_process_files"
    monkeypatch.setattr(merge, nothing)
    with pytest.raises(ConfigError, match=rf"step 1 of .* was not saved: it lacks {MANIFEST}"):
        save(tmp_path, 1)
