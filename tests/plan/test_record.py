"""What of a plan must match the committed one, and how closely."""

import copy

import pytest

from gpt_pjit.pages import compare, read_record, write_record
from gpt_pjit.plan.plan import TOLERANCE, essence


@pytest.fixture
def plan(small, plan_on_cpu):
    record = copy.deepcopy(plan_on_cpu(small).record)
    record["cost"]["mcycles"] = 1000.0  # XLA for CPU estimates none
    return record


@pytest.fixture
def changes(plan):
    """`changes(now)`: what of a plan differs from the one that is recorded."""
    return lambda now: compare(essence(plan), essence(now), TOLERANCE)


def test_the_record_is_the_file(plan, tmp_path):
    write_record(tmp_path / "plan.json", plan)
    assert read_record(tmp_path / "plan.json", tuple(plan)) == plan


def test_numbers_may_differ_by_two_percent(plan, changes):
    now = copy.deepcopy(plan)
    now["cost"]["mcycles"] = 1019.0
    assert changes(now) == []
    now["cost"]["mcycles"] = 1021.0
    assert changes(now) == [(("mcycles",), 1000.0, 1021.0)]
    now["cost"] = None
    assert changes(now) == [(("mcycles",), 1000.0, None)]
    now = copy.deepcopy(plan)
    now["memory"]["peak_bytes"] //= 2
    assert [change.path for change in changes(now)] == [("memory", "peak_bytes")]


def test_collectives_may_not_differ_at_all(plan, changes):
    now = copy.deepcopy(plan)
    now["collectives"][0]["bytes"] += 1
    assert {change.path[0] for change in changes(now)} == {"collectives"}
    now = plan | {"collectives": plan["collectives"][1:]}
    (change,) = changes(now)
    assert (change.before or 0) - (change.after or 0) == 1


def test_a_promise_newly_broken_is_named(plan, changes):
    now = copy.deepcopy(plan)
    now["promises"]["gradients_reduced_once"] = False
    assert changes(now) == [(("promises", "gradients_reduced_once"), True, False)]


def test_names_and_times_of_the_compile_do_not_count(plan, changes):
    now = copy.deepcopy(plan) | {"compile_seconds": 1e6, "program": "another"}
    now["collectives"][0] |= {"op_name": "renamed", "source": "moved.py:1"}
    assert changes(now) == []
