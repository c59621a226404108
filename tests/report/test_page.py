"""The page of runs: its tables, its curves, and how a browser shows them."""

import http.client
import json
import re
import threading
from argparse import Namespace

import pytest

from gpt_pjit.core.runtime import note
from gpt_pjit.pages import Choice, Table, page, serve
from gpt_pjit.report.charts import CHARTS, charts_of
from gpt_pjit.report.command import _page
from gpt_pjit.report.record import report_record
from gpt_pjit.report.views import report_blocks
from tests.browser import CHROMIUM, SCREENS, look
from tests.evaluate.test_report import record as results
from tests.helpers import ROOT, begin, run_command_here, tiny
from tests.processes import logged


def rows(blocks, title):
    """A table, as `{first cell: the others}`."""
    (table,) = (block for block in blocks if isinstance(block, Table) and block.title == title)
    return {getattr(row[0], "text", row[0]): row[1:] for row in table.rows}


def test_what_differs_between_runs_stands_side_by_side(make_run):
    workdirs = [make_run("low", lr=1e-3), make_run("high", lr=1e-2)]
    blocks = list(report_blocks(report_record(workdirs), pictures=True))
    assert rows(blocks, "Config: what differs") == {"optim.peak_lr": ["0.001", "0.01"]}
    summary = rows(blocks, "Runs")
    assert summary["steps"] == ["100 of 100"] * 2
    assert summary["training loss"] == ["4.0100"] * 2
    assert summary["MFU"] == ["40.0%"] * 2
    assert summary["starts"] == ["3", "3"]
    assert summary["spikes"] == ["1", "1"]
    spent = rows(blocks, "Where the time went")
    assert spent["compile"][0].startswith("21.0 s, ")
    assert set(rows(blocks, "Placement")) >= {"parameters", "mesh", "layout"}
    (choice,) = (block for block in blocks if isinstance(block, Choice))
    assert list(choice.options) == ["steps", "tokens", "hours"]


def test_restarts_are_marked_and_runs_are_named_in_each_picture(make_run):
    record = report_record([make_run("low"), make_run("high")])
    (choice,) = (b for b in report_blocks(record, pictures=True) if isinstance(b, Choice))
    for name, option in choice.options.items():
        titles = [title for title, _ in option.drawings]
        assert titles[:2] == ["Loss", "Perplexity"]
        (axes,) = option.drawings[0][1]().axes
        dotted = [line for line in axes.lines if line.get_linestyle() == ":"]
        assert len(dotted) == 4, name  # two starts again of each run
        solid = [line for line in axes.lines if line.get_linestyle() == "-"]
        assert len(solid) == (2 * 3 if name == "hours" else 2)  # broken between starts
        assert {"low", "high"} <= {line.get_label() for line in axes.lines}
        assert axes.get_ylabel() == "nats a token"


@pytest.fixture
def plan(tmp_path):
    """The record of a plan as it is committed, with figures that no new compile changes."""
    record = json.loads((ROOT / "configs" / "plans" / "580m.v3-32.json").read_text())
    scopes = {"mlp": {"forward": 15.0, "backward": 45.0}, "norms": {"forward": 20.0}}
    record["cost"] |= {"step_seconds": 1.2, "scopes": scopes | {"loss_head": {"forward": 20.0}}}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(record))
    return path


def test_a_plan_stands_beside_the_measurement(make_run, plan):
    record = report_record([make_run()], plan)
    blocks = list(report_blocks(record))
    assert rows(blocks, "")["seconds a step"][0].notes == ["plan 1.200, ratio 1.25"]
    (gap,) = record["runs"]["run"]["gaps"]
    assert gap == f"{plan} is the plan of a run with other parameters"


def test_a_profile_stands_beside_the_plan(make_run, plan):
    record = report_record([make_run()], plan)
    (run,) = record["runs"].values()
    scopes = {"mlp": {"forward": 0.002, "backward": 0.004}, "norms": {"forward": 0.002}}
    run["profile"] = {"first": "7", "steps": 3, "seconds": 0.008, "scopes": scopes}
    run["profile"]["operations"] = []
    table = rows(report_blocks(record), "Profile from step 7 on, in ms a step")
    assert table == {
        "mlp": ("2.00", "4.00", "75.0%", "60.0%"),
        "norms": ("2.00", "", "25.0%", "20.0%"),
    }


def test_results_of_evaluations_are_found_or_given(make_run, tmp_path):
    workdir = make_run()
    (workdir / "scores").mkdir()
    (workdir / "scores" / "results.json").write_text(json.dumps(results("found")))
    (tmp_path / "other.json").write_text(json.dumps(results("given")))
    record = report_record([workdir], None, [tmp_path / "other.json"])
    table = rows(report_blocks(record), "Results")
    assert table["text8"][-2:] == ("1.0000", "1.0000")


def test_files_of_the_command(make_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gpt_pjit.report.charts.CHARTS", CHARTS[:1])  # a picture takes a while
    workdir, pictures = make_run(), tmp_path / "pictures"
    written = tmp_path / "page.html"
    flags = (workdir, f"--html={written}", f"--png={pictures}")
    code, out, _ = run_command_here(capsys, "report", *flags)
    assert code == 0
    assert out.startswith(f"wrote {written}\nwrote {pictures}/loss.png")
    note(workdir, finished=100)
    live = f"--html={written}", "--live=1"  # which ends, since the run has
    assert run_command_here(capsys, "report", workdir, *live)[0] == 0
    assert "http-equiv" not in written.read_text()
    assert (pictures / "loss.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = run_command_here(capsys, "report", workdir, "--json")
    assert json.loads(out)["runs"]["run"]["steps"]["done"] == 100


def test_the_server_answers_this_machine_alone(tmp_path):
    begin(tmp_path / "new", tiny())
    workdir, flags = tmp_path / "new", Namespace(live=7)
    with serve(lambda: _page(flags, report_record([workdir])), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def get(path, host):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
            connection.request("GET", path, headers={"Host": f"{host}:{server.server_port}"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

        status, text = get("/", "localhost")
        assert status == 200
        assert '<meta http-equiv="refresh" content="7">' in text  # the run goes on
        assert get("/", "attacker.example")[0] == 403
        assert get("/run.json", "localhost")[0] == 404
        server.shutdown()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="wants chromium")
def test_a_browser_shows_all_of_it(make_run, tmp_path):
    """On a desk and on a phone: no message, nothing loaded, nothing wider than the screen, and the
    pictures of one choice at a time.
    """
    record = report_record([make_run("low"), make_run("a-run-with-a-long-name-" * 4)])
    file = tmp_path / "page.html"
    file.write_text(page("runs", report_blocks(record, pictures=True)))
    shown = "[...document.querySelectorAll('.choice > .pictures')]"
    shown += ".map(one => getComputedStyle(one).display).join()"
    for name, width in SCREENS.items():
        script = f"document.querySelectorAll('.choice input')[2].click(); document.title = {shown}"
        found = look(file.as_uri(), width, "dark", script)
        assert found.messages == [], name
        assert found.width == width, name
        assert found.clipped == [], name
        assert found.title == "none,none,grid", name
    assert not re.search(r"(?:src|href)=\"http", file.read_text())


def test_metrics_without_a_chart_of_their_own_are_drawn_together(make_run):
    workdir = make_run()
    lines = logged(workdir)
    for line in lines:
        line |= {f"depth/updates/{layer:02}": layer + 1.0 for layer in range(24)}
        line |= {"time/step": 0.2, "time/data": 0.05}
        line |= {"hosts/slowest": 1.0, "hosts/idle_most": 0.03, "hosts/idle_median": 0.01}
    for line in lines[::20]:
        line |= {"evaluation/piqa/acc": 0.5, "evaluation/piqa/acc_stderr": line["step"] / 1e4}
    lines[-3] |= {"evaluation/piqa/acc": "damaged"}
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = report_record([workdir])
    chart, _, tasks = charts_of(record["runs"])[len(CHARTS) :]
    assert chart.title == "Depth: updates"
    assert (tasks.title, tasks.metric) == ("Evaluation: piqa: acc", "evaluation/piqa/acc")
    assert list(chart.parts) == [f"{layer:02}" for layer in range(0, 24, 3)]
    of_two = charts_of(record["runs"] | {"other": record["runs"]["run"]})
    titles = ["Hosts: idle most", "Hosts: idle median", "Evaluation: piqa: acc"]
    assert [c.title for c in of_two[len(CHARTS) :]] == titles
    assert rows(report_blocks(record), "Tasks") == {"piqa acc": ["50.00 ± 0.80 % at 80"]}
    slowest = rows(report_blocks(record), "Slowest hosts")
    assert slowest == {"process 1": ["in 100% of the log intervals, by 20.0 ms a step"]}
    table = rows(report_blocks(record), "Where a step's time goes")
    assert table["data"] == ["50.0 ms, 25.0%"]
