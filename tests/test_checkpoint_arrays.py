"""Arrays are written and read one at a time, and folders made of them appear whole or not."""

import jax
import numpy as np
import pytest

from gpt_pjit.checkpoint_arrays import derived_workdir, new_folder, read_arrays
from gpt_pjit.core.checkpoints import write_state
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens import BytesTokenizer
from tests.helpers import tiny

ARRAY = jax.ShapeDtypeStruct((2,), np.float32)


@pytest.mark.parametrize("name", ["run[1]", "a*b?", "Größe"])
def test_what_is_written_is_read(tmp_path, name):
    write_state(tmp_path / name, 3, {"a": np.ones(2, np.float32), "b": np.zeros(2, np.float32)})
    assert read_arrays(tmp_path / name, 3, {"a": ARRAY})["a"].tolist() == [1, 1]
    with pytest.raises(ConfigError, match=r"step 3 of .* cannot be read: it lacks c "):
        read_arrays(tmp_path / name, 3, {"a": ARRAY, "c": ARRAY})


def test_a_state_counts_once_its_parts_are_there(tmp_path, monkeypatch):
    async def nothing(*_, **__):
        pass

    merge = "orbax.checkpoint._src.serialization.ocdbt_utils.merge_ocdbt_per_process_files"
    monkeypatch.setattr(merge, nothing)
    with pytest.raises(ConfigError, match=r"step 3 of .* cannot be saved: it lacks default/manif"):
        write_state(tmp_path, 3, {"a": np.ones(2, np.float32)})


def make(out):
    with new_folder(out) as draft:
        (draft / "file").write_text("whole")


def test_it_appears_where_a_link_points_with_the_mode_of_any_folder(tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "link").symlink_to("far/away")
    make(tmp_path / "link")
    assert (tmp_path / "far" / "away" / "file").read_text() == "whole"
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "away").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert [path.name for path in (tmp_path / "far").iterdir()] == ["away"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").symlink_to("empty")
    make(tmp_path / "other")
    assert (tmp_path / "empty" / "file").read_text() == "whole"


def test_what_cannot_be_made_or_replaced_is_one_message(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"new cannot be made: File exists"):
        make(tmp_path / "file" / "new")
    with pytest.raises(ConfigError, match="already exists"):
        make(tmp_path / "file")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ConfigError, match="the current folder; choose a new folder in it"):
        make(tmp_path / "here")
    monkeypatch.setattr("pathlib.Path.is_mount", lambda _: True)
    with pytest.raises(ConfigError, match="is a mount point"):
        make(tmp_path / "new")


def test_nothing_stays_of_what_fails_or_exists(tmp_path):
    workdir = tiny(), BytesTokenizer(), {"from": "somewhere"}
    with derived_workdir(tmp_path / "new", *workdir):
        assert not (tmp_path / "new").exists()
    assert (tmp_path / "new" / "run.json").exists()
    exists = pytest.raises(ConfigError, match="already exists")
    with exists, derived_workdir(tmp_path / "new", *workdir):
        pass
    with pytest.raises(ZeroDivisionError), derived_workdir(tmp_path / "other", *workdir):
        1 / 0  # noqa: B018
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
