"""A run goes on with the data that it began with, or says what is different."""

import json

import pytest

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.runtime import check_data, open_workdir
from tests.helpers import tiny

SET = {"path": "sets/a", "tokenizer": "aaaa", "vocab_size": 257, "sha256": "bbbb"}
TOKENIZER = ("tokenizer.json", b"{}")


@pytest.fixture
def workdir(tmp_path):
    open_workdir(tmp_path / "run", tiny())
    check_data(tmp_path / "run", [SET], TOKENIZER)
    return tmp_path / "run"


def test_the_data_are_recorded_at_the_first_start(workdir):
    record = json.loads((workdir / "run.json").read_text())
    assert record["data"] == [SET]
    assert len(record["starts"]) == 1
    assert (workdir / "tokenizer.json").read_bytes() == b"{}"
    open_workdir(workdir, tiny())
    assert json.loads((workdir / "run.json").read_text())["data"] == [SET]


def test_the_same_data_may_move(workdir):
    check_data(workdir, [SET | {"path": "gs://bucket/a"}], TOKENIZER)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokenizer": "cccc"}, "tokenizer of sets/b is cccc, the run had aaaa of sets/a"),
        ({"vocab_size": 300}, "vocab_size of sets/b is 300, the run had 257 of sets/a"),
        ({"sha256": "dddd"}, "sha256 of sets/b is dddd, the run had bbbb of sets/a"),
    ],
)
def test_other_data_are_refused_with_both_named(workdir, changed, message):
    with pytest.raises(ConfigError, match=rf"run in {workdir} .*\n  {message}; use the run's"):
        check_data(workdir, [SET | {"path": "sets/b"} | changed], TOKENIZER)


def test_another_number_of_sets_is_refused(workdir):
    with pytest.raises(ConfigError, match="it is 2 sets, the run had 1"):
        check_data(workdir, [SET, SET], TOKENIZER)
