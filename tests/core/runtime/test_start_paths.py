"""Every way to start several processes joins them, and none listens on every interface."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

import pytest

from tests.processes import Process, free_address, member, run_flags, wait_for_end

# Joins, computes a sum over both processes, and prints it with all addresses it listens at.
PROGRAM = """
import json, sys
import jax, numpy as np
from jax.experimental import multihost_utils
from jax._src.clusters import cloud_tpu_cluster
from gpt_pjit.commandline import report_errors
from gpt_pjit.config import MeshConfig
from gpt_pjit.core.cluster import discovery
from gpt_pjit.core.runtime import ending_together, initialize_devices
from tests.core.runtime.test_start_paths import listening

if "--tpu" in sys.argv:  # what JAX sees where a TPU is plugged in
    cloud_tpu_cluster.running_in_cloud_tpu_vm = True
    discovery._has_tpu = lambda: True
with report_errors(), ending_together():
    initialize_devices(MeshConfig(), distributed="--distributed" in sys.argv)
    total = multihost_utils.process_allgather(np.ones(1)).sum()
    report = {"sum": float(total), "listening": listening("self")}
    multihost_utils.sync_global_devices("reported")  # the listener of process 0 is still there
    print(json.dumps(report), flush=True)
"""


def listening(pid):
    """The addresses at which a process listens, as `ss -ltp` shows them."""
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(os.readlink(descriptor))
        except FileNotFoundError:
            continue  # it is that of this folder
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in sockets:
                found.append(_address(local))
    return found


def _address(local):
    """`127.0.0.1:80` of the kernel's `0100007F:0050`."""
    digits, _, port = local.partition(":")
    words = [bytes.fromhex(digits[i : i + 8])[::-1] for i in range(0, len(digits), 8)]
    raw = b"".join(words)
    if not any(raw):
        return f"*:{int(port, 16)}"
    if len(raw) == 16 and raw[:12] == b"\0" * 10 + b"\xff\xff":  # IPv4 in IPv6
        raw = raw[12:]
    text = ".".join(map(str, raw)) if len(raw) == 4 else raw.hex(":", 2)
    return f"{text}:{int(port, 16)}"


def two(common, *ids):
    """The variables of two processes; each has its number in `ids`."""
    return [common | dict.fromkeys(ids, str(process)) for process in (0, 1)]


def explicit(address):
    return [member(process, 2, address) for process in (0, 1)]


def slurm(address):
    common = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NTASKS": "2",
        "JAX_COORDINATOR_PORT": address.partition(":")[2],
    }
    return two(common, "SLURM_PROCID", "SLURM_LOCALID")


def open_mpi(address):
    common = {
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
        "JAX_COORDINATOR_PORT": address.partition(":")[2],
    }
    return two(common, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")


def gke(address):
    common = {
        "TPU_WORKER_HOSTNAMES": "127.0.0.1,127.0.0.1",
        "MEGASCALE_COORDINATOR_ADDRESS": "127.0.0.1",
        "MEGASCALE_NUM_SLICES": "1",
        "MEGASCALE_SLICE_ID": "0",
        "JAX_COORDINATOR_PORT": address.partition(":")[2],
    }
    return two(common, "TPU_WORKER_ID")


def sum_and_listeners(environments, *flags):
    command = [sys.executable, "-c", PROGRAM, *flags]
    ends = wait_for_end([Process(command, **variables) for variables in environments], 120)
    assert [end.returncode for end in ends] == [0, 0], ends
    reports = [json.loads(end.stdout.splitlines()[-1]) for end in ends]
    return {report["sum"] for report in reports}, [report["listening"] for report in reports]


@pytest.mark.parametrize(
    ("start", "flags"),
    [
        (explicit, []),
        pytest.param(explicit, ["--distributed"], marks=pytest.mark.slow),
        pytest.param(slurm, [], marks=pytest.mark.slow),
        pytest.param(slurm, ["--distributed"], marks=pytest.mark.slow),
        pytest.param(open_mpi, [], marks=pytest.mark.slow),
        pytest.param(gke, ["--tpu"], marks=pytest.mark.slow),
    ],
)
def test_processes_join_and_none_listens_on_every_interface(start, flags):
    address = free_address()
    total, listeners = sum_and_listeners(start(address), *flags)
    assert total == {2.0}
    assert address in listeners[0]  # the coordinator; both have one of Gloo
    assert [len(addresses) for addresses in listeners] == [2, 1]
    assert not [one for addresses in listeners for one in addresses if one.startswith("*")]


def processes_of(mark):
    """The ids of all processes that have this value in their environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                yield folder.name
        except OSError:  # it has just ended
            continue


@pytest.mark.slow
@pytest.mark.long
def test_training_listens_on_no_interface_but_its_own(tmp_path):
    """From the first moment to the last, with everything that a run starts."""
    (tmp_path / "text.txt").write_text("A text of some length. " * 100)
    fields = {
        "model.d_model": 32,
        "model.d_ff": 32,
        "data.batch_size": 4,
        "data.text": tmp_path / "text.txt",
        "optim.steps": 20,
    }
    command = ["bash", "launch/local.sh", "--processes=2", "--devices=1"]
    command += run_flags(tmp_path / "run", fields)
    seen = set()
    run = Process(command, MARK=str(tmp_path))
    while run.poll() is None:
        time.sleep(0.02)
        for pid in processes_of(f"MARK={tmp_path}"):
            with contextlib.suppress(OSError):
                seen.update((pid, address) for address in listening(pid))
    assert run.ended().returncode == 0
    assert len({pid for pid, _ in seen}) == 2  # both have been seen to listen
    assert not [address for _, address in seen if address.startswith("*")]
