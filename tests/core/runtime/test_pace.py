"""The host's own time, and the line that names who holds up a run."""

import json
import time
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from gpt_pjit.core.runtime import Timeline, Watch, metrics, planned
from gpt_pjit.core.runtime.metrics import StepLog
from gpt_pjit.core.runtime.pace import Pace, Report, Stragglers
from gpt_pjit.core.runtime.planned import Planned, planned_step
from tests.helpers import ROOT, load_config, tiny
from tests.processes import logged

PLAN = ROOT / "configs" / "plans" / "580m.v3-32.json"
PARAMS = 586_931_712


def report(to, step=1.0, **idle):
    return Report(to, step, {"data": 0.0, "dispatch": 0.0, "write": 0.0, "rest": 0.0} | idle)


def named(capsys, *intervals):
    """What is said of intervals, in each of which `{process: Report}` arrive."""
    stragglers = Stragglers()
    hosts = {number: f"node{number}" for number in range(4)}
    for reports in intervals:
        stragglers.hear(reports, hosts)
    return capsys.readouterr().err, stragglers.metrics


def four(to, **idle):
    usual = {number: report(to, data=0.05) for number in (0, 1, 3)}
    return usual | {2: report(to, **idle)}


def test_a_slow_host_is_named_after_two_intervals_and_only_once(capsys):
    text, found = named(capsys, four(10, data=0.6))
    assert text == ""
    intervals = [four(10, data=0.6), four(20, data=0.7), four(30, data=0.7), four(40, data=0.7)]
    text, found = named(capsys, *intervals)
    expected = "process 2 (node2) holds up the others: its devices idle 0.70 s of each 1.00 s step"
    assert text.splitlines() == [f"warning: {expected}, 0.70 s of that waiting for data"]
    assert found["hosts/slowest"] == 2
    assert found["hosts/idle_most"] == 0.7
    assert found["hosts/idle_median"] == pytest.approx(0.05)


def test_an_interval_counts_once_all_have_told_of_it(capsys):
    late = four(10, data=0.6) | {0: report(20, data=0.05)}
    text, _ = named(capsys, four(10, data=0.6), late, late)
    assert text == ""


@pytest.mark.parametrize("idle", [{"data": 0.12}, {"rest": 0.0}])
def test_a_host_that_is_hardly_slower_is_not_named(capsys, idle):
    assert named(capsys, *(four(n, **idle) for n in (10, 20, 30)))[0] == ""


def test_a_host_that_was_slow_once_is_not_named(capsys):
    intervals = four(10, data=0.6), four(20), four(30, data=0.6), four(40)
    assert named(capsys, *intervals)[0] == ""


def test_what_all_hosts_want_is_named_without_a_host(capsys):
    text, _ = named(capsys, *({n: report(to, data=0.5) for n in range(4)} for to in (10, 20)))
    assert "devices idle 0.50 s of each 1.00 s step, 0.50 s of that waiting for data" in text
    text, _ = named(capsys, *({0: report(to, step=0.02, write=0.005)} for to in (10, 20)))
    assert text == ""  # a tiny model, whose steps are as short as what surrounds them


def test_devices_that_have_work_do_not_wait_for_data():
    pace = Pace()
    with pace.part("data"):
        time.sleep(0.05)
    with pace.part("dispatch"):
        time.sleep(0.02)
    now = time.perf_counter()
    pace.gap(done=now + 1, dispatched=now)  # the step before was still under way
    assert sum(pace.idle.values()) == 0
    assert pace.spent["data"] == pytest.approx(0.05, abs=0.02)


def test_devices_wait_from_the_end_of_a_step_to_the_next_dispatch():
    pace = Pace()
    start = time.perf_counter()
    with pace.part("write"):
        time.sleep(0.03)
    with pace.part("data"):
        time.sleep(0.1)
    with pace.part("dispatch"):
        time.sleep(0.02)
    dispatched = time.perf_counter()
    pace.gap(done=start + 0.06, dispatched=dispatched)
    assert pace.idle["write"] == 0
    assert pace.idle["data"] == pytest.approx(0.07, abs=0.02)
    assert pace.idle["dispatch"] == pytest.approx(0.02, abs=0.015)
    assert sum(pace.idle.values()) == pytest.approx(dispatched - start - 0.06)


def test_the_plan_is_found_by_chip_mesh_layout_model_and_batch(monkeypatch):
    device = SimpleNamespace(device_kind="TPU v3")
    monkeypatch.setattr(planned.jax, "devices", lambda: [device])
    config, mesh = load_config("580m"), {"replica": 1, "data": 32, "tensor": 1}
    others = sorted((ROOT / "configs" / "plans").glob("580m.*.json"))
    expected = json.loads(PLAN.read_text())["cost"]["step_seconds"]
    assert planned_step(others, config, mesh, PARAMS) == Planned(expected, PLAN)
    assert planned_step(others, config, mesh | {"data": 16}, PARAMS) is None
    assert planned_step(others, config, mesh, PARAMS + 1) is None
    assert planned_step(others, load_config("124m"), mesh, PARAMS) is None
    device.device_kind = "cpu"
    assert planned_step(others, config, mesh, PARAMS) is None


def test_files_that_are_no_plans_are_passed_over(tmp_path):
    for name, text in {"one": "{", "two": "[]", "three": '{"cost": null}'}.items():
        (tmp_path / name).write_text(text)
    assert planned_step(sorted(tmp_path.iterdir()), tiny(), {}, 1) is None


@pytest.fixture
def step_log(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "read_run", lambda _: (None, {"starts": [{}]}))

    def make(**options):
        return StepLog(tiny(log={"every": 2}), tmp_path, 1000, 0, Timeline(), Watch(60), **options)

    return make


def steps(log, numbers, seconds=0.0):
    for step in numbers:
        time.sleep(seconds)
        log.push(step, {"train/loss": jnp.float32(1), "train/grad_norm": jnp.float32(1)})


@pytest.mark.parametrize(("planned", "says"), [(0.001, True), (10.0, False)])
def test_a_run_that_is_slower_than_its_plan_says_so_once(step_log, capsys, tmp_path, planned, says):
    log = step_log(planned=Planned(planned, PLAN))
    steps(log, range(1, 9), seconds=0.02)
    log.close()
    text = capsys.readouterr().err
    assert text.count(f"more than planned (0.00 s, {PLAN})") == says
    found = {line.get("time/plan") for line in logged(tmp_path)}
    assert found == {None, planned}  # not of the first step


def test_saves_that_hold_up_a_run_are_named_once(step_log, capsys, monkeypatch):
    monkeypatch.setattr(metrics, "SLOW_SAVE", 0.05)
    log = step_log()
    for first in (1, 3, 5):
        steps(log, range(first, first + 2))
        with log.pause("save", first + 1):
            time.sleep(0.1)
    log.close()
    assert capsys.readouterr().err.count("a save held up the run for 0 s") == 1
