"""gpt_pjit doctor finds the faults that are planted, names their remedies, and finds no others."""

import fcntl
import json
import sys

import pytest

from gpt_pjit.core.errors import EXIT_BROKEN
from gpt_pjit.core.files import as_path
from gpt_pjit.data import Corpus, prepare
from tests.processes import ROOT, Process, free_address, member, wait_for_end

CONFIG = ROOT / "tests" / "run_config.py"
FIELDS = {
    "model.d_model": 32,
    "model.d_ff": 32,
    "data.batch_size": 12,
    "data.text": ROOT / "README.md",
    "data.tokenizer": "bytes",
}
OF_A_HOST = {"TPU lock", "hosts", "devices", "versions", "disk", "workdir", "collective"}
OF_A_CONFIG = {"data", "step"}
OF_HOSTS = {"clocks", "latency"}
ODD = 1  # the process of a pod in which faults are planted

# Its first argument is Python that plants faults.
PROGRAM = """
import sys
from pathlib import Path
from gpt_pjit.commandline import run_command
from gpt_pjit.doctor import command, host, pod
command.SECONDS = 300  # a minute is enough on a machine that does nothing else
exec(sys.argv.pop(1))
run_command("gpt_pjit.doctor.command", prog="gpt_pjit doctor")
"""


def with_config(**fields):
    fields = FIELDS | fields
    return [f"--config={CONFIG}", *(f"--config.{name}={value}" for name, value in fields.items())]


def start(folder, *flags, plant="", **variables):
    plant = f"host.TPU_LOCK = Path({str(folder / 'tpu_lock')!r})\n{plant}"
    command = [plant, "--json", f"--workdir={folder / 'run'}", *map(str, flags)]
    return Process([sys.executable, "-c", PROGRAM, *command], devices=2, **variables)


def start_pod(folder, *flags, processes=2, plant="", odd_plant=""):
    """Two of `processes`, with faults planted in both and in one of them."""
    address = free_address()
    return [
        start(
            folder,
            *flags,
            plant=f"{plant}\n{odd_plant if process == ODD else ''}",
            **member(process, processes, address),
        )
        for process in (0, 1)
    ]


def findings(processes):
    """What process 0 shows, by the name of the check; all end with the exit code it implies."""
    ends = wait_for_end(processes)
    lines = ends[0].stdout.splitlines()
    found = json.loads("\n".join(line for line in lines if not line.startswith("[Gloo]")))
    expected = 0 if all(finding["good"] for finding in found) else EXIT_BROKEN
    assert [end.returncode for end in ends] == [expected] * len(ends), ends
    return {finding["check"]: finding for finding in found}


def assert_faults(found, faults):
    """Exactly these checks have failed, with these words in what they found, and their remedies."""
    assert {name for name, finding in found.items() if not finding["good"]} == set(faults), found
    for name, (words, remedy) in faults.items():
        assert words in found[name]["found"]
        assert remedy in found[name]["remedy"]


@pytest.mark.slow
def test_a_good_machine(tmp_path):
    found = findings([start(tmp_path)])
    assert_faults(found, {})
    assert set(found) == OF_A_HOST
    assert "right on 2 devices" in found["collective"]["found"]
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


@pytest.mark.slow
def test_workdirs_in_buckets(bucket, tmp_path):
    """Of two processes; one that is there, and one whose bucket is not."""
    there, absent = as_path(f"{bucket}/runs/doctor"), f"{bucket}-absent/runs/doctor"
    found = findings(start_pod(tmp_path, f"--workdir={there}"))
    assert_faults(found, {})
    assert "seen by all" in found["workdir"]["found"]
    assert "a bucket" in found["disk"]["found"]
    assert list(there.glob("*")) == []
    found = findings(start_pod(tmp_path, f"--workdir={absent}"))
    assert_faults(found, {"workdir": (f"there is no bucket {bucket}-absent", "create it")})


@pytest.mark.slow
def test_a_good_pod(tmp_path):
    prepare(Corpus((str(ROOT / "README.md"),)), "bytes", tmp_path / "set")
    data = {"data.text": "", "data.text_exclude": "", "data.path": tmp_path / "set"}
    found = findings(start_pod(tmp_path, *with_config(**data)))
    assert_faults(found, {})
    assert set(found) == OF_A_HOST | OF_A_CONFIG | OF_HOSTS
    assert "right on 4 devices" in found["collective"]["found"]
    assert "tokens/s" in found["data"]["found"]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_faults_of_a_machine(tmp_path):
    plant = """
host.hardware_utils.has_visible_nvidia_gpu = lambda: True
host.os.environ["JAX_PLATFORMS"] = ""
real = pod.global_array
pod.global_array = lambda *arguments: 2 * real(*arguments)
"""
    config = with_config(**{"model.n_layers": 10**9, "data.text": "absent*"})
    with (tmp_path / "tpu_lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        workdir = f"--workdir={ROOT / 'README.md' / 'run'}"
        found = findings([start(tmp_path, *config, workdir, plant=plant)])
    faults = {
        "TPU lock": ("another process holds", "sudo lsof"),
        "devices": ("an NVIDIA GPU, but JAX uses 2 CPU devices", "pip install 'gpt_pjit[cuda]'"),
        "disk": ("needed", "make room, choose another --workdir"),
        "workdir": ("cannot be written: Not a directory", "choose another --workdir"),
        "data": ("'absent*' matches no file", "correct what this names"),
        "collective": ("a sum over 2 devices is 6 instead of 3", "a device or a link is faulty"),
    }
    assert_faults(found, faults)


@pytest.mark.slow
def test_a_config_that_does_not_fit(tmp_path):
    # A folder cannot be opened to write either, also by root, for whom no file is another's.
    plant = "host.TPU_LOCK.mkdir()"
    found = findings([start(tmp_path, *with_config(**{"mesh.tensor": 3}), plant=plant)])
    faults = {
        "TPU lock": ("left by another user", "sudo rm"),
        "step": ("which does not divide 2 devices", "sizes that work divide 2"),
    }
    assert_faults(found, faults)


@pytest.mark.slow
def test_jax_finds_no_device(tmp_path):
    found = findings([start(tmp_path, JAX_PLATFORMS="cuda")])
    assert_faults(found, {"hosts": ("JAX finds no such device", "install JAX for that device")})


@pytest.mark.slow
def test_a_check_that_hangs(tmp_path):
    plant = "import time; command.SECONDS = 15; pod.collective = lambda: time.sleep(300)"
    found = findings([start(tmp_path, plant=plant)])
    faults = {"collective": ("not finished 15 seconds after", "end other processes")}
    assert_faults(found, faults)


@pytest.mark.slow
def test_faults_of_one_host_of_a_pod(tmp_path):
    plant = """
import time
now, local = time.time, host.jax.local_device_count
pod.code_facts = lambda: {"python": "3", "package jax": "0.1"}
pod.time.time = lambda: now() + 60
pod.round_trip = lambda: 0.3
host.jax.local_device_count = lambda: 1
sys.argv.append("--workdir=" + str(host.TPU_LOCK.parent / "own"))
"""
    found = findings(start_pod(tmp_path, odd_plant=plant))
    faults = {
        "versions": ("package jax is '0.1' on process 1", "install the same on all hosts"),
        "clocks": ("the clock of process 1 is 60", "sudo timedatectl set-ntp true"),
        "latency": ("300 ms between process 1 and process 0", "use hosts in one zone"),
        "workdir": ("process 0 does not see what process 1 writes", "that all hosts share"),
        "devices": ("1 cpu, where most have 2 cpu", "restart that host"),
    }
    assert_faults(found, faults)
    assert found["devices"]["processes"] == [ODD]


@pytest.mark.slow
def test_a_host_is_missing(tmp_path):
    found = findings(start_pod(tmp_path, processes=3, plant="command.SECONDS_TO_MEET = 8.0"))
    assert_faults(found, {"hosts": ("process 2 of 3 did not connect to", "start it")})


@pytest.mark.slow
def test_one_host_has_no_device(tmp_path):
    plant = "host.jax.config.update('jax_platforms', 'cuda')"
    ends = wait_for_end(start_pod(tmp_path, odd_plant=plant))
    assert [end.returncode for end in ends] == [EXIT_BROKEN] * 2
    assert all("JAX finds no such device on this machine" in end.stderr for end in ends)
