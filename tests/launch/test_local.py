"""launch/local.sh: several processes on one machine, one exit code, no orphans."""

import os
import signal
import subprocess
import sys
import time

import pytest

from gpt_pjit.core.errors import EXIT_CONFIG
from tests.helpers import ROOT

LOCAL = str(ROOT / "launch" / "local.sh")

# A stand-in for the trainer, as a module: says who it is, and does what its flag says.
MODULE = """
import os, sys, time
rank = os.environ["JAX_PROCESS_ID"]
print(f"process {rank} of {os.environ['JAX_NUM_PROCESSES']}, {os.environ['JAX_NUM_CPU_DEVICES']}")
if f"--fail={rank}" in sys.argv:
    sys.exit(7)
if "--sleep" in sys.argv or any(a.startswith("--fail") for a in sys.argv):
    open(f"{sys.argv[1]}/{os.getpid()}", "w")
    time.sleep(60)
"""


@pytest.fixture
def module(tmp_path):
    (tmp_path / "stand_in.py").write_text(MODULE)
    (tmp_path / "pids").mkdir()
    return tmp_path


def start(module, *flags):
    return subprocess.Popen(
        ["bash", LOCAL, "--processes=3", "--devices=2", "--module=stand_in", *flags],
        env=os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(module)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def alive(module):
    found = []
    for path in (module / "pids").iterdir():
        try:
            os.kill(int(path.name), 0)
            found.append(path.name)
        except ProcessLookupError:
            pass
    return found


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_process_0_speaks_for_all(module):
    process = start(module)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert output == "process 0 of 3, 2\n"


def test_the_first_to_fail_ends_the_others(module):
    process = start(module, f"{module}/pids", "--fail=1")
    process.communicate(timeout=60)
    assert process.returncode == 7
    wait_until(lambda: not alive(module))


def test_a_signal_leaves_no_orphans(module):
    process = start(module, f"{module}/pids", "--sleep")
    wait_until(lambda: len(alive(module)) == 3)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode != 0
    wait_until(lambda: not alive(module))


def test_help_shows_the_usage():
    shown = subprocess.run(["bash", LOCAL, "--help"], capture_output=True, text=True, check=True)
    assert "launch/local.sh --processes=4 --devices=8" in shown.stdout


def test_a_mistake_in_the_flags_of_the_trainer_is_its_exit_code():
    command = ["bash", LOCAL, "--processes=1", "--devices=1", "--nonsense"]
    environment = os.environ | {"PYTHON": sys.executable}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert result.returncode == EXIT_CONFIG
    assert "unrecognized arguments: --nonsense" in result.stderr


def test_killing_the_launcher_leaves_no_orphans(module):
    process = start(module, f"{module}/pids", "--sleep")
    wait_until(lambda: len(alive(module)) == 3)
    process.kill()
    process.communicate(timeout=60)
    wait_until(lambda: not alive(module))


def test_a_mistake_in_the_topology_is_its_exit_code_too():
    command = ["bash", LOCAL, "--topology=v9-8"]
    environment = os.environ | {"PYTHON": sys.executable}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert result.returncode == EXIT_CONFIG
    assert "v9-8" in result.stderr


def test_a_dry_run_starts_nothing(module):
    shown = start(module, "--dry_run").communicate(timeout=60)[0].splitlines()
    assert [line.split()[0] for line in shown] == [f"JAX_PROCESS_ID={i}" for i in range(3)]
    assert all("-m stand_in" in line for line in shown)
