"""A run resumes with the data it started with, or says what is different; and the way on."""

import json

import pytest

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.runtime import open_workdir, record_start
from tests.helpers import tiny

SET = {"path": "sets/a", "tokenizer": "aaaa", "vocab_size": 257, "sha256": "bbbb"}
TOKENIZER = ("tokenizer.json", b"{}")


def started(folder, config, *sets):
    open_workdir(folder, config)
    record_start(folder, config, list(sets or [SET]), TOKENIZER)
    return folder


@pytest.fixture
def workdir(tmp_path):
    return started(tmp_path / "run", tiny())


def test_each_start_is_recorded_and_the_data_at_the_first(workdir):
    record = json.loads((workdir / "run.json").read_text())
    assert record["data"] == [SET]
    assert record["tokenizer"] == {"sha256": "aaaa", "vocab_size": 257, "path": "sets/a"}
    assert len(record["starts"]) == 1
    assert (workdir / "tokenizer.json").read_bytes() == b"{}"
    started(workdir, tiny(log={"every": 3}), SET | {"path": "gs://moved/a"})
    again = json.loads((workdir / "run.json").read_text())
    assert (again["data"], len(again["starts"])) == ([SET], 2)
    assert again["config"]["log"]["every"] == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokenizer": "cccc"}, "tokenizer of sets/b is cccc, but the run had aaaa of sets/a"),
        ({"vocab_size": 300}, "vocab_size of sets/b is 300, but the run had 257 of sets/a"),
        ({"sha256": "dddd"}, "sha256 of sets/b is dddd, but the run had bbbb of sets/a"),
    ],
)
def test_other_data_are_refused_with_both_named(workdir, changed, message):
    with pytest.raises(ConfigError, match=rf"run in {workdir} .*\n  {message}; use the run's data"):
        started(workdir, tiny(), SET | {"path": "sets/b"} | changed)
    with pytest.raises(ConfigError, match="there are 2 sets, but the run had 1"):
        started(workdir, tiny(), SET, SET)
    assert len(json.loads((workdir / "run.json").read_text())["starts"]) == 1


def test_a_start_that_never_reached_its_data_binds_nothing(tmp_path):
    open_workdir(tmp_path / "run", tiny(optim={"steps": 5}))
    started(tmp_path / "run", tiny(optim={"steps": 7}))
    with pytest.raises(ConfigError, match=r"optim.steps=5: the run in .* has 7"):
        open_workdir(tmp_path / "run", tiny(optim={"steps": 5}))


@pytest.mark.parametrize(
    "changes", [{"optim": {"steps": 2000}}, {"data": {"batch_size": 32}}, {"optim": {"b2": 0.9}}]
)
def test_what_cannot_change_in_a_run_names_the_way_on(workdir, changes):
    way = rf"new run from its weights: gpt_pjit checkpoint grow {workdir} --layers=2 --out=NEW"
    with pytest.raises(ConfigError, match=way):
        open_workdir(workdir, tiny(**changes))
    with pytest.raises(ConfigError, match=way):
        started(workdir, tiny(), SET | {"sha256": "dddd"})


def test_a_model_of_another_shape_is_not_promised_its_weights(workdir):
    with pytest.raises(ConfigError, match=r"model.d_ff=64: .*use another --workdir") as raised:
        open_workdir(workdir, tiny(model={"d_ff": 64}))
    assert "grow" not in str(raised.value)


def test_a_workdir_that_cannot_be_used_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file is a file; choose a folder"):
        open_workdir(tmp_path / "file", tiny())
    with pytest.raises(ConfigError, match="cannot be used: Not a directory"):
        open_workdir(tmp_path / "file" / "run", tiny())
    with pytest.raises(ConfigError, match="cannot be used: No such file or directory"):
        open_workdir(type(tmp_path)("/proc/no/such"), tiny())
    with pytest.raises(ConfigError, match="cannot be used: File name too long"):
        open_workdir(tmp_path / ("x" * 300), tiny())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "other").write_text("")
    with pytest.raises(ConfigError, match=r"is not empty and has no run.json"):
        open_workdir(tmp_path / "full", tiny())

    def no_space(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", no_space)
    with pytest.raises(ConfigError, match=r"run.json cannot be written: No space left on device"):
        open_workdir(tmp_path / "run", tiny())


@pytest.mark.parametrize("nested", ["[" * 1100 + "]" * 1100, "[" * 900 + "]" * 900, "[" * 9000])
def test_a_damaged_record_is_one_sentence(workdir, nested):
    record = json.loads((workdir / "run.json").read_text())
    record["config"]["data"]["sources"] = "HERE"
    (workdir / "run.json").write_text(json.dumps(record).replace('"HERE"', nested))
    with pytest.raises(ConfigError, match=r"run.json is damaged: it is n"):
        open_workdir(workdir, tiny())
