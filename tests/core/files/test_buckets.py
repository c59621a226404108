"""Paths in buckets have the methods of local ones, whatever the store does with them."""

import importlib.util
import json
from pathlib import Path

import pytest

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.files import (
    Mirror,
    as_path,
    buckets,
    check_bucket,
    copy_folder,
    files_below,
    is_remote,
    read_json,
    remove_folder,
    write_json,
)


def test_a_path_is_local_or_in_a_bucket():
    assert as_path("~/run") == Path.home() / "run"
    assert not is_remote(as_path("runs/s3:/x"))
    for text, message in (
        ("az://bucket/run", "az://bucket/run is neither a path on this machine nor gs://"),
        ("https://host/run", "is neither a path"),
        ("file:///run", "is neither a path"),
    ):
        with pytest.raises(ConfigError, match=message):
            as_path(text)


@pytest.mark.parametrize(("scheme", "client"), [("gs", "gcsfs"), ("s3", "s3fs")])
def test_a_missing_client_is_named_with_how_to_install_it(scheme, client, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = rf"{scheme}:// needs the package {client}: pip install 'gpt_pjit\[{scheme}\]'"
    with pytest.raises(ConfigError, match=message):
        as_path(f"{scheme}://bucket/run")


def test_files_are_written_listed_moved_and_removed(bucket):
    folder = as_path(f"{bucket}/files/run 1")
    assert not folder.exists()
    assert list(folder.glob("*")) == []
    folder.mkdir(parents=True)
    for name in ("a.txt", "b.json", "deep/er/c.txt"):
        (folder / name).write_text(name)
    assert sorted(str(path.name) for path in folder.iterdir()) == ["a.txt", "b.json", "deep"]
    assert [str(path) for path in folder.glob("*.txt")] == [f"{folder}/a.txt"]
    assert folder.is_dir()
    assert (folder / "deep").is_dir()
    assert not (folder / "a.txt").is_dir()
    assert folder.resolve() == folder
    assert sorted(size for size, _ in files_below(folder)) == [5, 6, 13]
    assert (folder / "a.txt").stat().st_size == 5
    folder.rename(folder.parent / "moved")
    assert not folder.exists()
    moved = folder.parent / "moved"
    assert (moved / "deep" / "er" / "c.txt").read_text() == "deep/er/c.txt"
    remove_folder(moved)
    remove_folder(moved)
    assert not moved.exists()


def test_what_another_client_writes_is_seen_at_once(bucket):
    """A client that keeps listings would not see the `run.json` of process 0."""
    folder = as_path(f"{bucket}/listings")
    (folder / "one").write_text("")
    assert len(list(folder.iterdir())) == 1
    fresh = type(folder)._backend.fs(str(folder)).__class__(skip_instance_cache=True)
    fresh.pipe_file(f"{folder}/two", b"")
    assert (folder / "two").exists()
    assert len(list(folder.iterdir())) == 2


def test_a_file_that_another_host_changes_is_read_whole(bucket, monkeypatch):
    """In between the requests of a client that makes several: it knows a file by its tag."""
    path = as_path(f"{bucket}/changed/lock-1")
    path.write_text("first")
    store = buckets._store(path)
    info = store.info

    def info_before_a_change(key, *rest, **named):
        found = info(key, *rest, **named)
        store.pipe_file(key, b"second")
        return found

    monkeypatch.setattr(store, "info", info_before_a_change)
    assert path.read_text() in ("first", "second")


def test_an_object_that_stands_for_a_folder_is_not_in_it(s3):
    folder = as_path(f"{s3}/made-by-hand")
    type(folder)._backend.fs(str(folder)).pipe_file(f"{folder}/", b"")
    assert list(folder.iterdir()) == []


def test_json_is_written_whole_and_read(bucket):
    path = as_path(f"{bucket}/json/run.json")
    write_json(path, {"a": 1})
    assert read_json(path) == {"a": 1}
    assert [file.name for file in path.parent.iterdir()] == ["run.json"]
    with pytest.raises(ConfigError, match=r"other.json cannot be read"):
        read_json(path.with_name("other.json"))


def test_a_bucket_that_is_not_there_is_one_sentence_and_is_not_made(bucket):
    missing = as_path(bucket.replace("bucket", "missing") + "/run")
    missing.mkdir(parents=True)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"there is no bucket \w\w://missing; create it"):
            check_bucket(missing, 0)
    present = as_path(f"{bucket}/present")
    check_bucket(present, 0)
    assert not present.exists()
    with pytest.raises(ConfigError, match="is not a folder in a bucket"):
        as_path(f"{bucket}/")
    with pytest.raises(ConfigError, match=r"run\[1\] has \*, \? or \["):
        as_path(f"{bucket}/run[1]")


def test_a_folder_is_copied_with_the_file_that_makes_it_count_last(bucket, tmp_path, monkeypatch):
    for name in ("a", "last", "z/last", "z/y"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    target = as_path(f"{bucket}/copied")
    written = []
    write = type(target).write_bytes
    monkeypatch.setattr(
        type(target), "write_bytes", lambda path, data: (written.append(path), write(path, data))
    )
    copy_folder(tmp_path, target, last="last")
    assert str(written[-1]) == f"{target}/last"
    assert (target / "z" / "y").read_text() == "z/y"


def test_growing_files_are_copied_whole(bucket):
    target = as_path(f"{bucket}/mirrored")
    mirror = Mirror(target)
    lines = mirror.folder / "metrics.jsonl"
    (mirror.folder / "tensorboard").mkdir()
    (mirror.folder / "tensorboard" / "events").write_bytes(b"1")
    for step in range(3):
        with lines.open("a") as file:
            print(json.dumps({"step": step}), file=file)
        mirror.copy()
        assert (target / "metrics.jsonl").read_text() == lines.read_text()
    lines.write_text("the end")
    mirror.close()
    assert (target / "metrics.jsonl").read_text() == "the end"
    assert (target / "tensorboard" / "events").read_bytes() == b"1"
    assert not mirror.folder.exists()


def test_local_files_that_grow_are_in_their_place(tmp_path):
    mirror = Mirror(tmp_path)
    assert mirror.folder == tmp_path
    mirror.close()
    assert tmp_path.is_dir()
