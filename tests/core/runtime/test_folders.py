"""A folder appears when it is complete: where a link points, not over what cannot be replaced."""

import pytest

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.runtime import new_folder


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
