"""The search: which settings, in which order, what binds, and Ctrl-C."""

import json
import subprocess
import sys

import pytest

from gpt_pjit.core.errors import EXIT_DONE, EXIT_INTERRUPTED, ConfigError
from gpt_pjit.plan import search as room
from gpt_pjit.plan.search import candidates, ranked, search, search_tables
from gpt_pjit.plan.topology import find_topology
from tests.helpers import load_config, with_fields

V3 = find_topology("v3-32")
CONFIG = with_fields(load_config("580m"), {"optim.microbatches": 4, "model.remat": "full"})
ALL = {"optim.microbatches": None, "model.remat": ["none", "full"]}


def test_candidates_that_fit_come_first_the_fullest_first():
    found = candidates(CONFIG, V3, ALL)
    assert len(found) == 2 * 5  # 512 / 32 rows: 1, 2, 4, 8, 16
    fits = [c.memory.peak <= c.memory.capacity for c in found]
    assert fits == sorted(fits, reverse=True)
    assert any(fits)
    assert not all(fits)
    peaks = [c.memory.peak for c in found[: sum(fits)]]
    assert peaks == sorted(peaks, reverse=True)


def test_only_invalid_settings_are_an_error():
    with pytest.raises(ConfigError, match="remat"):
        candidates(CONFIG, V3, {"optim.microbatches": [4], "model.remat": ["most"]})


def plan_of(seconds, fits=True):
    cost = {
        "step_seconds": seconds,
        "compute_seconds": seconds,
        "collective_seconds": 0.0,
        "mfu": 0.4,
        "mcycles": 10.0,
        "scopes": {"MLP": {"forward": 6.0}, "norms": {"forward": 4.0}},
    }
    return {"fits": fits, "cost": cost, "memory": {"peak_bytes": 2**30}, "program": "abc"}


def answering(plan):
    code = f"import json; print(json.dumps({json.loads(json.dumps(plan))!r}))"
    return lambda arguments: subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def tried():
    wanted = {"optim.microbatches": [2, 4], "model.remat": ["full"]}
    return candidates(CONFIG, V3, wanted)


def test_rows_of_every_candidate(tried, monkeypatch):
    monkeypatch.setattr(room, "_start", answering(plan_of(1.5)))
    rows, code = search(tried, V3, [])
    assert code == EXIT_DONE
    assert [row.binds for row in rows] == ["compute: MLP, 60%"] * 2
    assert {row.candidate.text for row in rows} == {
        "--config.optim.microbatches=2",
        "as the config is",
    }


def test_settings_that_change_nothing_are_told(tried):
    rows = ranked([room.Row(candidate, plan_of(1.0)) for candidate in tried])
    table, fastest, pasted = search_tables(rows, V3)
    assert list(table.columns[4].cells) == [
        "compute: MLP, 60%",
        "the same program as a row above",
    ]
    assert fastest == "fastest that fits, 1.000 s a step:"
    assert pasted.strip() == rows[0].candidate.text


def test_ctrl_c_keeps_what_is_done_and_ends_the_rest(tried, monkeypatch):
    first = answering(plan_of(1.5))
    started = []

    def start(arguments):
        slow = [sys.executable, "-c", "import time; time.sleep(60)"]
        process = subprocess.Popen(slow, text=True) if started else first(arguments)
        started.append(process)
        return process

    def sleep(_):
        started[0].wait()
        if len(looks) > 2:
            raise KeyboardInterrupt
        looks.append(1)

    looks = []
    monkeypatch.setattr(room, "_start", start)
    monkeypatch.setattr(room.time, "sleep", sleep)
    rows, code = search(tried, V3, [])
    assert code == EXIT_INTERRUPTED
    assert len(rows) == 1
    assert started[1].poll() is not None


def test_a_candidate_whose_trees_do_not_fit_is_not_compiled(monkeypatch):
    monkeypatch.setattr(room, "_start", lambda _: pytest.fail("compiled"))
    config = load_config("580m")
    wanted = {"optim.microbatches": [4], "model.n_layers": [900]}
    rows, _ = search(candidates(config, V3, wanted), V3, [])
    assert [row.binds for row in rows] == ["memory: state, weights and gradients alone"]
    assert not rows[0].fits


def test_ranked_by_step_time_and_what_fits_first(tried):
    plans = [plan_of(1.0, fits=False), plan_of(3.0), plan_of(2.0)]
    rows = ranked([room.Row(tried[0], plan) for plan in plans])
    assert [row.step_seconds for row in rows] == [2.0, 3.0, 1.0]
    assert rows[-1].binds == "memory: activations"
