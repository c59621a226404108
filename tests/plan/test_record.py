"""A committed record comes back as it was written, and says what differs."""

import copy

import pytest

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.plan.plan import plan_record
from gpt_pjit.plan.record import changes, kept, read_record, write_record


@pytest.fixture
def values(small, plan_on_cpu):
    record = copy.deepcopy(plan_record(plan_on_cpu(small)[1]))
    record["cost"]["mcycles"] = 1000.0  # XLA for CPU estimates none
    return kept(record)


def test_what_is_written_is_read(values):
    assert changes(read_record(write_record(values), "file"), values) == []
    assert read_record(write_record(values), "file") == values


def test_numbers_may_differ_by_two_percent(values):
    assert changes(values, values | {"mcycles": 1019.0}) == []
    assert changes(values, values | {"mcycles": 1021.0}) == ["mcycles: 1,000.0 -> 1,021.0 (+2.1%)"]
    less = values | {"peak_bytes": values["peak_bytes"] // 2}
    assert "peak_bytes" in changes(values, less)[0]


def test_collectives_may_not_differ_at_all(values):
    now = copy.deepcopy(values)
    now["collectives"][0]["bytes"] += 1
    removed, added = changes(values, now)
    assert removed.startswith("- all-")
    assert added.startswith("+ all-")
    assert added.endswith("bytes each")


def test_a_promise_newly_broken_is_named(values):
    now = copy.deepcopy(values)
    now["promises"]["gradients_reduced_once"] = False
    assert changes(values, now) == ["promise gradients_reduced_once: True -> False"]


def test_a_file_that_is_no_record():
    with pytest.raises(ConfigError, match="is no record of a plan"):
        read_record("peak_bytes = 3", "file")
