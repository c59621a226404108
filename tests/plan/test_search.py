"""The search: which settings, in which order, what binds, and Ctrl-C."""

import json
import subprocess
import sys
import time

import pytest

from gpt_pjit.core.errors import EXIT_DONE, EXIT_INTERRUPTED, ConfigError
from gpt_pjit.plan import command as room
from gpt_pjit.plan.command import candidates, search
from gpt_pjit.plan.compile import find_topology
from gpt_pjit.plan.cost import fits
from gpt_pjit.plan.views import search_blocks
from tests.helpers import load_config, with_fields

V3 = find_topology("v3-32")
CONFIG = with_fields(load_config("580m"), {"optim.microbatches": 4, "model.remat": "full"})
ALL = {"optim.microbatches": [1, 2, 4, 8, 16], "model.remat": ["none", "full"]}


def test_candidates_that_fit_come_first_the_fullest_first():
    found = candidates(CONFIG, V3, ALL)
    assert len(found) == 2 * 5
    fitting = [fits(memory) for _, memory in found]
    assert fitting == sorted(fitting, reverse=True)
    assert any(fitting)
    assert not all(fitting)
    peaks = [memory["peak_bytes"] for _, memory in found[: sum(fitting)]]
    assert peaks == sorted(peaks, reverse=True)


def test_only_invalid_settings_are_an_error():
    with pytest.raises(ConfigError, match="remat"):
        candidates(CONFIG, V3, {"optim.microbatches": [4], "model.remat": ["most"]})


def plan_of(seconds, fits=True):
    cost = {
        "step_seconds": seconds,
        "compute_seconds": seconds,
        "exposed_seconds": 0.0,
        "mfu": 0.4,
        "mcycles": 10.0,
        "scopes": {"mlp": {"forward": 6.0}, "norms": {"forward": 4.0}},
    }
    return {"fits": fits, "cost": cost, "memory": {"peak_bytes": 2**30}, "program": "abc"}


def outcome(overrides, plan):
    record = {"overrides": overrides, "fits": plan["fits"], "limit": "", "trees_bytes": 2**30}
    return record | {"plan": plan}


@pytest.fixture
def tried():
    wanted = {"optim.microbatches": [2, 4], "model.remat": ["full"]}
    return candidates(CONFIG, V3, wanted)


@pytest.fixture
def child(monkeypatch):
    """`child(code)`: lets Python code stand in for the command that plans a candidate."""

    def stand_in(code):
        popen = subprocess.Popen

        def start(command, **options):
            assert command[1:3] == ["-m", "gpt_pjit.plan"]
            return popen([sys.executable, "-c", code, *command[3:]], **options)

        monkeypatch.setattr(room.subprocess, "Popen", start)

    return stand_in


def answering(plan):
    return f"import json; print(json.dumps({json.loads(json.dumps(plan))!r}))"


def test_outcomes_of_every_candidate(tried, child):
    child(answering(plan_of(1.5)))
    found, code = search(tried, [])
    assert code == EXIT_DONE
    assert [one["limit"] for one in found] == ["compute: mlp, 60%"] * 2
    assert sorted(one["overrides"] for one in found) == [
        [],
        ["--config.optim.microbatches=2"],
    ]


def test_children_are_planned_with_the_given_arguments(tried, child):
    child("import json, sys; print(json.dumps({'fits': 0, 'cost': 0, 'argv': sys.argv[1:]}))")
    found, _ = search(tried, ["--config=a.py", "--topology=v3-32"])
    (argv,) = (one["plan"]["argv"] for one in found if one["overrides"])
    assert argv == ["--config=a.py", "--topology=v3-32", "--config.optim.microbatches=2", "--json"]


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_child_that_says_much_does_not_hang(tried, child, stream):
    """More than a pipe holds."""
    child(f"import sys; sys.{stream}.write(' ' * 2**20); {answering(plan_of(1.0))}")
    found, _ = search(tried, [])
    assert [one["plan"]["cost"]["step_seconds"] for one in found] == [1.0, 1.0]


def test_a_failed_child_is_told(tried, child):
    child("import sys; sys.exit('boom')")
    found, code = search(tried, [])
    assert code == EXIT_DONE
    assert {one["limit"] for one in found} == {"failed: boom"}


def test_settings_that_change_nothing_are_told(tried):
    limit, plan = "compute: mlp, 60%", plan_of(1.0)
    found = [outcome(changed, plan) | {"limit": limit} for changed, _ in tried]
    table, fastest, pasted = search_blocks(found, V3.name)
    limits = [row[4] for row in table.rows]
    assert limits == ["compute: mlp, 60%", "the same program as a row above"]
    assert fastest.text == "fastest that fits, 1.000 s a step:"
    assert pasted.text.split() == tried[0][0] or tried[0][0] == []


def test_ctrl_c_keeps_what_is_done_and_ends_the_rest(tried, child, monkeypatch):
    child(
        "import sys, time\n"
        "if any('microbatches' in a for a in sys.argv): time.sleep(60)\n"
        f"{answering(plan_of(1.5))}"
    )
    completed = room.as_completed

    def first_then_ctrl_c(runs):
        yield next(completed(runs))
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "as_completed", first_then_ctrl_c)
    monkeypatch.setattr(room, "usable_cores", lambda: 2)
    start = time.monotonic()
    found, code = search(tried, [])
    assert time.monotonic() - start < 30
    assert code == EXIT_INTERRUPTED
    assert [one["overrides"] for one in found] == [[]]


def test_a_candidate_whose_trees_do_not_fit_is_not_compiled(monkeypatch):
    monkeypatch.setattr(room.subprocess, "Popen", lambda *_, **__: pytest.fail("compiled"))
    config = load_config("580m")
    wanted = {"optim.microbatches": [4], "model.n_layers": [900]}
    found, _ = search(candidates(config, V3, wanted), [])
    assert [one["limit"] for one in found] == ["memory: state, weights and gradients alone"]
    assert not found[0]["fits"]


def test_ranked_by_step_time_and_what_fits_first(tried, monkeypatch):
    plans = iter([plan_of(1.0, fits=False), plan_of(3.0), plan_of(2.0)])
    monkeypatch.setattr(room, "_outcome", lambda changed, *_: outcome(changed, next(plans)))
    monkeypatch.setattr(room, "usable_cores", lambda: 1)
    found, _ = search([tried[0]] * 3, [])
    assert [one["plan"]["cost"]["step_seconds"] for one in found] == [2.0, 3.0, 1.0]
    assert room._limit(found[-1]["plan"]) == "memory: activations"
