"""What is read of a workdir: whole, growing, old, damaged."""

import json
import math
import re

import pytest

from gpt_pjit.core.errors import EXIT_CONFIG, ConfigError
from gpt_pjit.report.record import MOST_ROWS, column, names_of, report_record, spikes
from tests.helpers import begin, run_command_here, tiny
from tests.processes import logged
from tests.report.conftest import SPIKE


def read(workdir):
    return report_record([workdir])["runs"][workdir.name]


def test_curves_lie_over_steps_tokens_and_hours(make_run):
    run = read(make_run())
    steps, losses = column(run, "train/loss")
    assert steps == list(range(2, 101, 2))
    assert losses[0] == pytest.approx(5.98)
    assert column(run, "train/loss", "tokens")[0] == [step * 64 * 32 for step in steps]
    hours = column(run, "train/loss", "hours")[0]
    assert hours[0] == pytest.approx((5 + 7 + 3) / 3600)
    assert hours == sorted(hours)


def test_time_adds_up_over_the_starts(make_run):
    time = read(make_run())["time"]
    assert time["redone"] == pytest.approx(4 * 3)  # steps 41 to 48
    assert (time["useful"], time["data"]) == (pytest.approx(50 * 2.5), pytest.approx(50 * 0.5))
    assert time["wall"] == pytest.approx(sum(time.values()) - time["wall"])


def test_a_spike_is_found_with_the_texts_of_its_batch(make_run):
    (spike,) = read(make_run())["spikes"]
    assert (spike["step"], spike["kind"], spike["rows"]) == (SPIKE, "spike", 64)
    assert len(spike["texts"]) == MOST_ROWS
    assert all(part["text"] for row in spike["texts"] for part in row)


@pytest.mark.parametrize(
    ("losses", "found"),
    [
        ([5, 4, 3, 2, 1], []),
        ([5, 4.9, 4.8, 4.7, 7, 4.6], [4]),
        ([5, 4.9, 4.8, 4.7, 7, 8, 7, 4.6], [5]),  # the worst of a group
        ([5, 4.9, 4.8, 4.7, math.nan, 4.6], []),  # is skipped, not a spike
        ([3, 3, 3, 3, 3.2], []),  # too small
        (
            [3, 3, 3, 3, 9, *(5 + n % 2 / 10 for n in range(30)), 5, 9],
            [4, 36],
        ),  # and does not recover
    ],
)
def test_spikes(losses, found):
    assert spikes(range(len(losses)), losses) == found


def test_runs_of_one_name_have_their_paths(tmp_path):
    paths = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "c"]
    assert list(names_of([*paths, paths[0]])) == [str(paths[0]), str(paths[1]), "c"]


def test_lines_that_are_damaged_are_counted_and_one_being_written_is_none(make_run):
    workdir = make_run()
    metrics = workdir / "metrics.jsonl"
    before = metrics.read_text()
    metrics.write_text('{"step": \n[]\n{"step": "x"}\n' + before + '{"step": 102, "train/lo')
    run = read(workdir)
    assert run["gaps"] == ["metrics.jsonl: 3 lines are damaged and left out"]
    assert len(run["lines"]) == len(before.splitlines())


def test_a_run_older_than_timelines(make_run):
    workdir = make_run()
    (workdir / "timeline.jsonl").unlink()
    lines = logged(workdir)
    text = "".join(json.dumps({**line, "time": None}) + "\n" for line in lines)
    (workdir / "metrics.jsonl").write_text(text)
    run = read(workdir)
    assert run["time"] is None
    assert column(run, "train/loss", "hours") == ([], [])
    assert not run["gaps"]


def test_a_timeline_that_is_damaged_is_a_gap(make_run):
    workdir = make_run()
    (workdir / "timeline.jsonl").write_text('{"what": "steps"}\n')
    assert read(workdir)["gaps"] == ["timeline.jsonl is damaged: where the time went is not known"]


def test_data_that_is_gone_is_a_gap(make_run, tmp_path):
    workdir = make_run()
    (tmp_path / "set-4000-200").rename(tmp_path / "elsewhere")
    run = read(workdir)
    assert "texts" not in run["spikes"][0]
    assert f"the data of step {SPIKE} cannot be opened" in run["gaps"][0]


def test_mistakes_are_one_message(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    begin(tmp_path / "damaged", tiny())
    record = json.loads((tmp_path / "damaged" / "run.json").read_text())
    record["starts"][0]["devices"] = "two"
    for name in ("run.json", "run.copy.json"):
        (tmp_path / "damaged" / name).write_text(json.dumps(record))
    for name, words in (
        ("none", "is not a folder; give the --workdir of a run"),
        ("empty", "has no run.json, so it is not a run"),
        ("damaged", "its starts are not those of a run"),
    ):
        with pytest.raises(ConfigError, match=words):
            report_record([tmp_path / name])
    code, out, errors = run_command_here(capsys, "report", tmp_path / "empty", "--live")
    assert (code, out) == (EXIT_CONFIG, "")
    assert "--live has 1 problem:\n  needs --html=FILE or --serve" in errors
    begin(tmp_path / "new", tiny())
    for flag, words in (
        ("--plan=none.json", "none.json cannot be read: No such file"),
        (f"--plan={tmp_path}/new/run.json", "no 'topology' in it"),
        (f"--evaluation={tmp_path}/new/run.json", "is not a results file of evaluate"),
    ):
        code, out, errors = run_command_here(capsys, "report", tmp_path / "new", flag)
        assert (code, out) == (EXIT_CONFIG, "")
        assert words in errors


def test_a_run_without_a_step(tmp_path, capsys):
    begin(tmp_path / "new", tiny())
    code, out, _ = run_command_here(capsys, "report", tmp_path / "new")
    assert code == 0
    assert "new: no step has been logged yet" in out
    assert re.search(r"steps +0 of ", out)
