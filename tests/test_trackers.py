"""Trackers hold the numbers of `metrics.jsonl`, and harm no run: real ones, without a network."""

import json
import os
import struct
import subprocess
import sys
import threading
import time
import zipfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from gpt_pjit import trackers
from gpt_pjit.commandline import Parser
from gpt_pjit.core.runtime.metrics import MetricsWriter
from gpt_pjit.main import define
from gpt_pjit.trackers import Tracker, track
from tests.helpers import tiny
from tests.processes import free_address, logged

LINES = [
    (1, {"train/loss": 5.5, "train/grad_norm": 1.0}),
    (2, {"train/loss": 0.1 + 0.2, "train/grad_norm": float("nan")}),
    (2, {"validation/loss": 4.25}),
    (3, {"train/loss": 2.0**-30}),
]


def write(workdir, name, lines, start=0):
    writer = MetricsWriter(workdir, start, partial(track, [name], tiny(), workdir))
    for step, metrics in lines:
        writer.write(step, metrics)
    writer.close()


def in_the_file(workdir):
    """`{(step, name): value}` of `metrics.jsonl`, without what is not finite."""
    found = {(line["step"], name): x for line in logged(workdir) for name, x in line.items()}
    return {k: x for k, x in found.items() if x is not None and k[1] not in ("step", "time")}


def test_a_tracker_gets_every_finite_number_in_a_thread_that_keeps_no_process_alive(
    tmp_path, monkeypatch
):
    lines, threads = [], set()

    class Notes:
        def write(self, *line):
            lines.append(line)
            threads.add(threading.current_thread())

        def close(self):
            lines.append("closed")

    monkeypatch.setitem(trackers.WRITERS, "wandb", lambda *_: Notes())
    start = time.time()
    write(tmp_path, "wandb", LINES)
    assert lines.pop() == "closed"
    found = {(step, name): x for step, _, metrics in lines for name, x in metrics.items()}
    assert found == in_the_file(tmp_path)
    assert all(start <= at <= time.time() for _, at, _ in lines)
    assert [(t.daemon, t is threading.main_thread()) for t in threads] == [(True, False)]


class Fails:
    """A tracker that fails: at once, or with the second line."""

    def __init__(self, at_once):
        if at_once:
            raise RuntimeError("no such server\nand more")

    def write(self, step, at, metrics):
        if step == 2:
            raise OSError("gone")


@pytest.mark.parametrize(("at_once", "reason"), [(True, "no such server"), (False, "gone")])
def test_a_failing_tracker_is_one_warning(tmp_path, monkeypatch, capsys, at_once, reason):
    monkeypatch.setitem(trackers.WRITERS, "wandb", lambda *_: Fails(at_once))
    write(tmp_path, "wandb", LINES)
    assert f"warning: wandb: {reason}; the run goes on without it" in capsys.readouterr().err
    assert len(in_the_file(tmp_path)) == 5


def test_a_tracker_that_is_not_installed_is_one_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    write(tmp_path, "wandb", LINES)
    assert "the run goes on without it" in capsys.readouterr().err


def test_a_slow_tracker_keeps_nobody_waiting(tmp_path, monkeypatch, capsys):
    class Slow:
        def __init__(self, *_):
            time.sleep(3600)

    monkeypatch.setitem(trackers.WRITERS, "wandb", Slow)
    monkeypatch.setattr(trackers, "MOST_WAITING", 2)
    monkeypatch.setattr(trackers, "SECONDS_TO_END", 0.1)
    tracker, start = Tracker("wandb", tmp_path, tiny()), time.monotonic()
    for step, metrics in LINES:
        tracker.write(step, metrics)
    tracker.close()
    assert time.monotonic() - start < 2
    errors = capsys.readouterr().err
    assert errors.count("wandb is falling behind; metrics from step 2 on are dropped there") == 1
    assert "wandb did not finish within" in errors


def test_the_flag(capsys):
    parser = Parser(prog="train")
    define(parser)
    assert parser.parse(["--config=x", "--track=wandb, mlflow"]).track == ["wandb", "mlflow"]
    with pytest.raises(SystemExit) as stop:
        parser.parse(["--config=x", "--track=neptune"])
    assert stop.value.code == 78
    assert "'neptune' is not among wandb, mlflow, comet, clearml" in capsys.readouterr().err


def test_none_is_imported_unasked():
    names = {"wandb", "mlflow", "comet_ml", "clearml"}
    code = f"import sys, gpt_pjit.trackers; assert not {names} & {{*sys.modules}}"
    subprocess.run([sys.executable, "-c", code], check=True)


def records(content):
    """The records of a file of wandb, which has the form of LevelDB's log after 7 bytes."""
    at, record = 7, b""
    while at + 7 <= len(content):
        if (room := 2**15 - at % 2**15) < 7:
            at += room
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("wandb") is None, reason="wants wandb")
@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_holds_the_same_numbers(tmp_path, monkeypatch):
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    write(tmp_path, "wandb", LINES)
    (path,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    found, deadline = {}, time.monotonic() + 20
    while found != in_the_file(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.5)  # its service ends the file after the run
        for content in records(path.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(content)
            if record.WhichOneof("record_type") == "history":
                items = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
                step = int(items.get("_step", record.history.step.num))
                values = {(step, n): json.loads(x) for n, x in items.items() if n[0] != "_"}
                found |= values
    assert found == in_the_file(tmp_path), path.stat()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of an MLflow server."""
    host, port = free_address().split(":")
    command = [sys.executable, "-m", "mlflow", "server", f"--host={host}", f"--port={port}"]
    store = f"--backend-store-uri=sqlite:///{tmp_path}/mlflow.db"
    log = (tmp_path / "server.log").open("w")
    process = subprocess.Popen(
        [*command, store, "--workers=1"], cwd=tmp_path, stdout=log, stderr=log
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{host}:{port}")
    import urllib.request

    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"http://{host}:{port}/health", timeout=5)
            break
        except OSError:
            assert time.monotonic() < deadline, Path(log.name).read_text()
            time.sleep(0.5)
    yield
    process.terminate()
    process.wait(30)
    log.close()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("comet_ml") is None, reason="wants comet-ml")
@pytest.mark.filterwarnings("ignore")
def test_comet_offline_holds_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("COMET_START_ONLINE", "false")
    write(tmp_path, "comet", LINES[:3])
    write(tmp_path, "comet", LINES[3:], start=2)  # the next start of the same experiment
    found, parameters, keys = {}, {}, set()
    for path in (tmp_path / "comet").glob("*.zip"):
        with zipfile.ZipFile(path) as archive:
            keys.add(json.loads(archive.read("experiment.json"))["offline_id"])
            lines = map(json.loads, archive.read("messages.json").splitlines())
            payloads = [line["payload"] for line in lines]
        metrics = [payload["metric"] for payload in payloads if "metric" in payload]
        found |= {(m["step"], m["metricName"]): m["metricValue"] for m in metrics}
        told = [payload["param"] for payload in payloads if "param" in payload]
        parameters |= {one["paramName"]: one["paramValue"] for one in told}
    ours = {(step, name): value for (step, name), value in found.items() if "/" in name}
    assert ours == in_the_file(tmp_path)
    assert parameters["data.batch_size"] == "64"
    assert len(keys) == 1


@pytest.mark.parametrize(("earlier", "reused"), [([], False), (["a1"], "a1")])
def test_clearml_continues_the_task_of_an_earlier_start(tmp_path, monkeypatch, earlier, reused):
    task = MagicMock()
    task.is_offline.return_value = False
    task.get_tasks.return_value = [SimpleNamespace(id=one) for one in earlier]
    monkeypatch.setitem(sys.modules, "clearml", SimpleNamespace(Task=task))
    write(tmp_path, "clearml", LINES[:1])
    asked, told = task.get_tasks.call_args.kwargs, task.init.call_args.kwargs
    assert asked == {"project_name": "gpt_pjit", "tags": told["tags"]}
    assert (told["reuse_last_task_id"], told["continue_last_task"]) == (reused, 0)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("clearml") is None, reason="wants clearml")
@pytest.mark.filterwarnings("ignore")
def test_clearml_offline_holds_the_same_numbers(tmp_path):
    """In a process of its own, as it keeps its main task."""
    code = f"""
import os, pathlib, random, signal
from tests.test_trackers import LINES, write
os.register_at_fork(before=lambda: print("a fork"))
random.seed = lambda *_: print("a seed")
before = [signal.getsignal(number) for number in range(1, 32)]
write(pathlib.Path({str(tmp_path)!r}), "clearml", LINES)
assert before == [signal.getsignal(number) for number in range(1, 32)]
"""
    offline = {"CLEARML_OFFLINE_MODE": "1", "CLEARML_CACHE_DIR": str(tmp_path)}
    command, environment = [sys.executable, "-c", code], os.environ | offline
    output = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    assert "a fork" not in output.stdout
    assert "a seed" not in output.stdout
    (folder,) = (path for path in (tmp_path / "offline").iterdir() if path.is_dir())
    events = [event for line in logged(folder) for event in line]
    found = {(e["iter"], f"{e['metric']}/{e['variant']}"): e["value"] for e in events}
    assert found == in_the_file(tmp_path)
    task = json.loads((folder / "task.json").read_text())
    assert task["hyperparams"]["config"]["data.batch_size"]["value"] == "64"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mlflow") is None, reason="wants mlflow")
@pytest.mark.filterwarnings("ignore")
def test_an_mlflow_server_holds_the_same_numbers(tmp_path, server):
    import mlflow

    workdir = tmp_path / "run"
    workdir.mkdir()
    write(workdir, "mlflow", LINES[:3])
    write(workdir, "mlflow", LINES[3:], start=2)  # the next start of the same run
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("gpt_pjit")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["data.batch_size"] == "64"
    names = run.data.metrics
    history = [m for name in names for m in client.get_metric_history(run.info.run_id, name)]
    assert {(m.step, m.key): m.value for m in history} == in_the_file(workdir)
    assert os.environ["MLFLOW_TRACKING_URI"].startswith("http://127.0.0.1")
