"""launch/local.sh: several processes on one machine, one exit code, no orphans."""

import os
import signal

import pytest

from gpt_pjit.core.errors import EXIT_CONFIG
from tests.processes import Process, run, wait_for_end, wait_until

LOCAL = "launch/local.sh"

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
    command = [LOCAL, "--processes=3", "--devices=2", "--module=stand_in", *flags]
    return Process(command, PYTHONPATH=str(module))


def end(process):
    return wait_for_end([process], 60)[0]


def alive(module):
    found = []
    for path in (module / "pids").iterdir():
        try:
            os.kill(int(path.name), 0)
            found.append(path.name)
        except ProcessLookupError:
            pass
    return found


def test_process_0_speaks_for_all(module):
    ended = end(start(module))
    assert (ended.returncode, ended.stdout) == (0, "process 0 of 3, 2\n")


def test_the_first_to_fail_ends_the_others(module):
    assert end(start(module, f"{module}/pids", "--fail=1")).returncode == 7
    wait_until(lambda: not alive(module), 20)


def test_a_signal_leaves_no_orphans(module):
    process = start(module, f"{module}/pids", "--sleep")
    wait_until(lambda: len(alive(module)) == 3, 20)
    process.send_signal(signal.SIGTERM)
    assert end(process).returncode != 0
    wait_until(lambda: not alive(module), 20)


def test_help_shows_the_usage():
    shown = run([LOCAL, "--help"])
    assert "launch/local.sh --processes=4 --devices=8" in shown.stdout


def test_a_mistake_in_the_flags_of_the_trainer_is_its_exit_code():
    result = run([LOCAL, "--processes=1", "--devices=1", "--nonsense"])
    assert result.returncode == EXIT_CONFIG
    assert "unrecognized arguments: --nonsense" in result.stderr


def test_killing_the_launcher_leaves_no_orphans(module):
    process = start(module, f"{module}/pids", "--sleep")
    wait_until(lambda: len(alive(module)) == 3, 20)
    process.kill()
    end(process)
    wait_until(lambda: not alive(module), 20)


def test_a_mistake_in_the_topology_is_its_exit_code_too():
    result = run([LOCAL, "--topology=v9-8"])
    assert result.returncode == EXIT_CONFIG
    assert "v9-8" in result.stderr


def test_a_dry_run_starts_nothing(module):
    shown = end(start(module, "--dry_run")).stdout.splitlines()
    assert [line.split()[0] for line in shown] == [f"JAX_PROCESS_ID={i}" for i in range(3)]
    assert all("-m stand_in" in line for line in shown)
