"""Saving and restoring: on any mesh, in any folder, and nothing counts that is not whole."""

import gc
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_pjit.core.checkpoints import (
    Checkpointer,
    fingerprints,
    orbax_folder,
    read_part,
    reading,
    restore_params,
    saved_steps,
)
from gpt_pjit.core.errors import EXIT_CONFIG, ConfigError, FaultError, IntegrityError
from gpt_pjit.core.training import TrainState
from tests.helpers import program_on, tiny

MANIFEST = "default/manifest.ocdbt"
STATE = TrainState(jnp.int32(0), {"a": jnp.arange(8.0), "b": {"c": jnp.ones((3, 4))}}, ())
TARGET = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), STATE)

# Orbax abandons its other reads when one fails, and they complain when they are collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collected():
    yield
    gc.collect()


def state_of(step):
    params = jax.tree.map(lambda x: x + step, STATE.params)
    return TrainState(jnp.int32(step), params, ())


def save(directory, *steps, keep=None):
    checkpointer = Checkpointer(directory, keep)
    checkpointer.restore_newest(TARGET)
    for step in steps:
        checkpointer.save(step, state_of(step))
    checkpointer.close()


def newest(directory):
    """The newest step, whose content is checked, or None."""
    found = Checkpointer(directory, None).restore_newest(TARGET)
    if found is None:
        return None
    step, state = found
    assert all(map(np.array_equal, *map(jax.tree.leaves, (state, state_of(step)))))
    return step


def test_the_state_of_another_optimizer_is_no_damage(tmp_path):
    """It is refused as a mistake of the config, and stays where it is."""
    save(tmp_path, 3)
    other = TARGET._replace(opt_state={"mu": TARGET.params["a"]})
    words = r"step 3 .* other optim.rules \(it lacks opt_state/mu\)"
    with pytest.raises(ConfigError, match=words) as raised:
        Checkpointer(tmp_path, None).restore_newest(other)
    assert raised.value.code == EXIT_CONFIG
    assert newest(tmp_path) == 3


def test_a_state_is_restored_bit_for_bit_on_another_mesh(tmp_path):
    config = tiny(partition={"layout": "zero1"})
    before, after = program_on(config, (1, 4, 2)), program_on(config, (2, 2, 1))
    with jax.set_mesh(before.mesh):
        state = before.init(jax.random.key(1))._replace(step=jnp.int32(5))
        checkpointer = Checkpointer(tmp_path, None)
        checkpointer.save(5, state)
        checkpointer.close()
    with jax.set_mesh(after.mesh):
        step, restored = Checkpointer(tmp_path, None).restore_newest(after.state)
        assert step == 5
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
    assert newest(tmp_path) == 7
    assert newest(tmp_path / "nothing") is None


@pytest.mark.parametrize("name", ["run[1]", "a*b?", "my run", "~", "Größe", "q%20#x", "-x", "s3"])
def test_a_folder_of_any_name_holds_checkpoints(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / name, Path(name, "relative")):
        save(folder / "checkpoints", 1, 2)
        assert newest(folder / "checkpoints") == 2
    (tmp_path / "link").symlink_to(name)
    assert newest(tmp_path / "link" / "checkpoints") == 2


def test_a_folder_named_like_a_bucket_is_local():
    assert str(orbax_folder(Path("/s3/runs")) / "checkpoints") == "/s3/runs/checkpoints"


def test_half_written_steps_do_not_count_and_go(tmp_path):
    save(tmp_path, 1, 2)
    (tmp_path / "4.orbax-checkpoint-tmp-7").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "5").write_text("a file")
    assert saved_steps(tmp_path) == [1, 2]
    assert newest(tmp_path) == 2
    assert not (tmp_path / "4.orbax-checkpoint-tmp-7").exists()
    assert (tmp_path / "notes").exists()


def flip(file, rng):
    content = bytearray(file.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    file.write_bytes(content)


def cut(file, rng):
    file.write_bytes(file.read_bytes()[: rng.integers(file.stat().st_size)])


DAMAGES = {
    "flip": flip,
    "cut": cut,
    "empty": lambda file, _: file.write_bytes(b""),
    "delete": lambda file, _: file.unlink(),
}


@pytest.mark.parametrize(
    ("damage", "trials"),
    [*((damage, 1) for damage in DAMAGES), pytest.param("flip", 30, marks=pytest.mark.slow)],
)
def test_damage_to_any_file_is_found_or_harmless(tmp_path, damage, trials, capsys):
    """Either exactly what was saved is read, or the step is set aside and the one before taken."""
    save(tmp_path / "whole", 1, 2)
    files = sorted(p for p in (tmp_path / "whole" / "2").rglob("*") if p.is_file())
    found = []
    for number, file in enumerate(files * trials):
        directory = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", directory)
        copy = directory / file.relative_to(tmp_path / "whole")
        DAMAGES[damage](copy, np.random.default_rng(number))
        step = newest(directory)  # compares every bit of the state
        assert step in (1, 2)
        assert (directory / "2.damaged").is_dir() == (step == 1)
        assert ("trying the step before it" in capsys.readouterr().err) == (step == 1)
        found += [directory] if step == 1 else []
    print(f"{damage}: {len(files) * trials} trials, {len(found)} set aside, the others harmless")
    assert len(found) >= 4  # the files with arrays, and those that say where they are
    save(found[-1], 2, 3, keep=2)  # the run continues as if step 2 had never been
    assert saved_steps(found[-1]) == [2, 3]


@pytest.mark.parametrize("checked", [True, False])
def test_without_fingerprints_flipped_bits_are_read_in_silence(tmp_path, monkeypatch, checked):
    params = {"a": jax.random.normal(jax.random.key(1), (20_000,))}
    checkpointer = Checkpointer(tmp_path / "whole", None)
    checkpointer.save(1, {"params": params})
    checkpointer.close()
    if not checked:
        monkeypatch.setattr(reading, "_check_same", lambda *_: None)
    silent = 0
    for number in range(8):
        directory = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", directory)
        largest = max((directory / "1").rglob("d/*"), key=lambda file: file.stat().st_size)
        flip(largest, np.random.default_rng(number))
        try:
            found = restore_params(directory, 1, params)
        except IntegrityError:
            continue
        silent += not np.array_equal(found["a"], params["a"])
    assert (silent > 0) == (not checked)


def test_a_flipped_bit_of_an_array_is_found_on_any_mesh():
    program = program_on(tiny(partition={"layout": "fsdp"}), (1, 4, 2))
    with jax.set_mesh(program.mesh):
        state = program.init(jax.random.key(1))
        here = jax.device_get(state)
        assert fingerprints(state) == fingerprints(here)
        rng, numbers = np.random.default_rng(5), fingerprints(state).numbers
        for leaf, name in zip(jax.tree.leaves(here), numbers, strict=True):
            bits = np.array(leaf).reshape(-1).view(np.uint32)
            bits[rng.integers(bits.size)] ^= np.uint32(1 << rng.integers(32))
            changed = bits.view(leaf.dtype).reshape(leaf.shape)
            assert fingerprints({name: changed}).numbers[name] != numbers[name]


def test_a_device_whose_copy_differs_is_named_and_nothing_is_saved(tmp_path):
    program = program_on(tiny(partition={"layout": "ddp"}), (1, 4, 1))
    with jax.set_mesh(program.mesh):
        state = program.init(jax.random.key(1))
        kernel = state.params["blocks"]["mlp"]["up"]["kernel"]
        shards = kernel.addressable_shards
        flipped = np.array(shards[2].data)
        flipped.view(np.uint32)[1, 3, 5] ^= 1
        parts = [shard.data for shard in shards]
        parts[2] = jax.device_put(flipped, shards[2].device)
        state.params["blocks"]["mlp"]["up"]["kernel"] = jax.make_array_from_single_device_arrays(
            kernel.shape, kernel.sharding, parts
        )
        device = shards[2].device
        with pytest.raises(IntegrityError, match=rf"up/kernel on {device} \(process 0\) differs"):
            Checkpointer(tmp_path, None).save(1, state)
    assert saved_steps(tmp_path) == []


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    state = state_of(1)._replace(params={"a": jnp.array([1.0, jnp.nan])})
    with pytest.raises(IntegrityError, match="params/a holds NaN or infinity at step 1"):
        Checkpointer(tmp_path, None).save(1, state)
    assert saved_steps(tmp_path) == []


def test_a_step_under_another_name_does_not_count(tmp_path, capsys):
    save(tmp_path, 1, 2)
    shutil.copytree(tmp_path / "1", tmp_path / "9")
    (tmp_path / "999").mkdir()
    assert newest(tmp_path) == 2
    errors = capsys.readouterr().err
    assert "it was saved as step 1" in errors
    assert "step 999" in errors
    # Steps of older versions have no fingerprints, but they know their step.
    shutil.copytree(tmp_path / "1", tmp_path / "9")
    metadata = tmp_path / "9" / "_CHECKPOINT_METADATA"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"custom_metadata": {}}))
    assert newest(tmp_path) == 2
    assert "holds the state of step 1" in capsys.readouterr().err
    assert (tmp_path / "9.damaged-2").is_dir()


def test_a_run_whose_steps_are_all_damaged_does_not_start_over(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "1" / "_CHECKPOINT_METADATA").unlink()
    with pytest.raises(IntegrityError, match=r"step 1 of .* it lacks _CHECKPOINT.*; no step here"):
        newest(tmp_path)


def test_what_a_step_does_not_hold_or_holds_in_another_shape_is_named(tmp_path):
    checkpointer = Checkpointer(tmp_path, None)
    checkpointer.save(1, {"params": {"a": STATE.params["a"]}})
    checkpointer.wait()
    with pytest.raises(IntegrityError, match=r"step 1 of .* cannot be read: it lacks step "):
        read_part(tmp_path, 1, TARGET)
    larger = jax.ShapeDtypeStruct((16,), jnp.float32, sharding=STATE.params["a"].sharding)
    with pytest.raises(IntegrityError, match=r"step 1 of .* cannot be read: .*shape"):
        restore_params(tmp_path, 1, {"a": larger})
    halves = jax.ShapeDtypeStruct((8,), jnp.bfloat16, sharding=STATE.params["a"].sharding)
    with pytest.raises(IntegrityError, match=r"params/a is float32 .*, not bfloat16"):
        restore_params(tmp_path, 1, {"a": halves})
    checkpointer.close()


@pytest.mark.parametrize("then", ["close", "save", "poll"])
def test_a_write_that_fails_in_the_background_is_raised(tmp_path, then, monkeypatch):
    checkpointer = Checkpointer(tmp_path, None)
    checkpointer.save(1, state_of(1))
    checkpointer.wait()
    merge = "orbax.checkpoint._src.serialization.ocdbt_utils.merge_ocdbt_per_process_files"

    async def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merge, full)
    checkpointer.save(2, state_of(2))

    def go_on():
        if then == "close":
            checkpointer.close()
        elif then == "save":
            checkpointer.save(3, state_of(3))
        while then == "poll":
            checkpointer.poll()

    with pytest.raises(FaultError, match=r"step 2 of .* was not saved: .*No space left on device"):
        go_on()
    assert newest(tmp_path) == 1


def test_a_save_counts_once_its_parts_are_there(tmp_path, monkeypatch):
    async def nothing(*_, **__):
        pass

    saved = []
    merge = "orbax.checkpoint._src.serialization.ocdbt_utils.merge_ocdbt_per_process_files"
    monkeypatch.setattr(merge, nothing)
    checkpointer = Checkpointer(tmp_path, None, saved.append)
    checkpointer.save(1, state_of(1))
    with pytest.raises(FaultError, match=rf"step 1 of .* was not saved: it lacks {MANIFEST}"):
        checkpointer.close()
    assert saved == []
