"""launch/slurm.sbatch on a real Slurm of one node: trains, restarts by exit code, resumes."""

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from tests.launch.slurm_cluster import DAEMONS, slurm_cluster
from tests.processes import by_step, run_flags, wait_until

missing = [
    name for name in DAEMONS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(bool(missing), reason=f"wants slurm-wlm and munge; missing {missing}"),
]

FIELDS = {
    "data.validation_fraction": 0,
    "optim.steps": 600,
    "checkpoint.every": 100,
    "log.every": 10,
}
# Ends its Nth start with the Nth of its codes; "term" waits for SIGTERM and then exits with 75.
STAND_IN = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[2])
rank = os.environ["SLURM_PROCID"]
number = sum(path.name.endswith(f"_{rank}") for path in folder.iterdir())
(folder / f"{number}_{rank}").touch()
code = sys.argv[3].split(",")[number]
if code == "term":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (folder / f"waits_{rank}.").touch()
    time.sleep(60)
sys.exit(int(code))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    # `launch/run.sh` takes this for its environment. It has all packages, so pip does nothing.
    python = folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\n[ "$2" = pip ] || exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (folder / "stand_in.py").write_text(STAND_IN)
    for path in folder.parents:  # munge wants folders that everyone may enter
        if path.is_relative_to(tmp_path_factory.getbasetemp().parent):
            path.chmod(0o711)
    folder.chmod(0o711)
    with slurm_cluster(folder) as cluster:
        yield cluster


def submit(cluster, log: Path, *flags: str, **environment: str) -> str:
    """Submits a job of two tasks; its number."""
    return cluster.run(
        "sbatch", "--parsable", "--ntasks=2", f"--output={log}", "launch/slurm.sbatch", *flags,
        VENV=str(cluster.folder / "venv"), EXTRA="cpu", BACKOFF="0", PYTHONPATH=str(cluster.folder),
        JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="1", **environment,
    ).strip()  # fmt: skip


def training(tmp_path, **fields) -> tuple[Path, list[str]]:
    """The workdir of a small run, and its flags."""
    corpus, workdir = tmp_path / "corpus", tmp_path / "run"
    corpus.mkdir()
    for number in range(30):
        (corpus / f"{number}.txt").write_text("".join(f"line {i}\n" for i in range(100)))
    fields = FIELDS | {"data.text": f"{corpus}/*.txt"} | fields
    return workdir, run_flags(workdir, fields)


def begin(cluster, tmp_path, codes: str) -> tuple[str, Path]:
    starts = tmp_path / "starts"
    starts.mkdir()
    return submit(cluster, tmp_path / "log", str(starts), codes, MODULE="stand_in"), starts


def test_a_run_of_two_tasks_is_requeued_and_finishes(cluster, tmp_path):
    workdir, flags = training(tmp_path)
    log = tmp_path / "log"
    job = submit(cluster, log, *flags)
    ended = ("FAILED", "COMPLETED")
    wait_until(
        lambda: (workdir / "checkpoints" / "100").exists() or cluster.job(job)["JobState"] in ended
    )
    cluster.run("scontrol", "requeue", job)
    after = cluster.end_of(job)
    assert (after["JobState"], after["Restarts"]) == ("COMPLETED", "1"), log.read_text()
    starts = json.loads((workdir / "run.json").read_text())["starts"]
    assert [(start["processes"], start["devices"][0]) for start in starts] == [(2, 2), (2, 2)]
    steps = list(by_step(workdir))
    assert steps == sorted(steps)
    assert steps[-1] == 600
    (saved,) = re.findall(r"stopped and saved at step (\d+)", log.read_text())
    assert f"steps: {saved} of 600 done" in log.read_text()


@pytest.mark.parametrize("code", [0, 77, 78, 130])
def test_codes_that_end_the_job(cluster, tmp_path, code):
    job, starts = begin(cluster, tmp_path, f"{code},0")
    after = cluster.end_of(job)
    assert after["JobState"] == ("FAILED" if code else "COMPLETED")
    assert after["ExitCode"] in (f"{code}:0", f"0:{code}")  # Slurm shows 130 as a signal
    assert sorted(path.name for path in starts.iterdir()) == ["0_0", "0_1"]


def test_75_requeues_the_job(cluster, tmp_path):
    job, starts = begin(cluster, tmp_path, "75,0")
    after = cluster.end_of(job)
    assert (after["JobState"], after["Restarts"]) == ("COMPLETED", "1")
    assert sorted(path.name for path in starts.iterdir()) == ["0_0", "0_1", "1_0", "1_1"]


def test_a_crash_is_retried_in_the_job_up_to_a_limit(cluster, tmp_path):
    job, starts = begin(cluster, tmp_path, "1,134,1,1,1,1,0")
    after = cluster.end_of(job)
    assert (after["JobState"], after["Restarts"], after["ExitCode"]) == ("FAILED", "0", "1:0")
    assert len(list(starts.glob("*_0"))) == 6


def test_time_that_is_up_requeues_and_a_cancelled_job_ends(cluster, tmp_path):
    job, starts = begin(cluster, tmp_path, "term,term,0")
    wait_until(lambda: len(list(starts.glob("waits_*"))) == 2)
    cluster.run(
        "scancel", "--signal=TERM", job
    )  # what --signal=TERM@300 does: steps, not the script
    wait_until(lambda: len(list(starts.glob("1_*"))) == 2)
    assert cluster.job(job)["Restarts"] == "1"
    cluster.run("scancel", job)
    after = cluster.end_of(job)
    assert (after["JobState"], after["Restarts"]) == ("CANCELLED", "1")


def test_a_process_of_a_job_that_srun_has_not_started_trains_alone(cluster, tmp_path):
    """As in a shell that ssh opens on the host of a job of two tasks: it waits for nobody."""
    workdir, flags = training(tmp_path, **{"optim.steps": 2})
    line = shlex.join([sys.executable, "-m", "gpt_pjit.main", *flags])
    job = cluster.run("sbatch", "--parsable", "--ntasks=2", f"--output={tmp_path}/log",
                      f"--wrap={line}", JAX_PLATFORMS="cpu").strip()  # fmt: skip
    assert cluster.end_of(job)["JobState"] == "COMPLETED", (tmp_path / "log").read_text()
    (start,) = json.loads((workdir / "run.json").read_text())["starts"]
    assert start["processes"] == 1
