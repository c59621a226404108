"""The cluster that an environment describes: launchers as they set it, and pieces that disagree."""

import http.server
import os
import sys
import threading

import pytest
from jax._src.clusters import cloud_tpu_cluster

from gpt_pjit.core.cluster import Cluster, find_cluster
from gpt_pjit.core.errors import ConfigError

LAUNCHERS = ("JAX_COORDINATOR", "JAX_NUM_P", "JAX_PROCESS", "SLURM", "OMPI", "TPU_", "MEGASCALE")

# As `srun --ntasks-per-node=4` on two hosts sets it.
STEP = {
    "SLURM_JOB_ID": "4097",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
# A shell that `salloc --ntasks=8` has opened on the first host: the count of the allocation stays.
SHELL = STEP | {
    "SLURM_STEP_ID": "4294967290",
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}
# A script of sbatch, before any srun.
SCRIPT = {name: SHELL[name] for name in SHELL if "STEP" not in name}
ONE_HOST = {"SLURM_JOB_NUM_NODES": "1"}
OPEN_MPI_4 = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
OPEN_MPI_5 = {name: value for name, value in OPEN_MPI_4.items() if "orte" not in name}
GKE = {"TPU_WORKER_HOSTNAMES": "w-0.job,w-1.job", "TPU_WORKER_ID": "1"}
EXPLICIT = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:99",
    "JAX_NUM_PROCESSES": "3",
    "JAX_PROCESS_ID": "2",
}


@pytest.fixture
def environment(monkeypatch):
    """Sets the given variables, and no other of a launcher."""
    for name in os.environ:
        if name.startswith(LAUNCHERS):
            monkeypatch.delenv(name)

    def set_all(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, None),
        (EXPLICIT, Cluster("JAX's variables", "10.0.0.1:99", 3, 2)),
        (STEP, Cluster("Slurm", "gpu07:61441", 8, 5, [1])),
        (STEP | {"JAX_COORDINATOR_PORT": "5"}, Cluster("Slurm", "gpu07:5", 8, 5, [1])),
        # Slurm has chosen the GPU of the task, or the task is alone on its host and has all.
        (STEP | {"CUDA_VISIBLE_DEVICES": "2"}, Cluster("Slurm", "gpu07:61441", 8, 5)),
        (
            STEP | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"},
            Cluster("Slurm", "gpu07:61441", 2, 1),
        ),
        # srun -n1 in a job of many tasks; a shell, a script or ssh in a job of one host.
        (STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"}, None),
        (SHELL | ONE_HOST, None),
        (SCRIPT | ONE_HOST, None),
        ({"SLURM_JOB_ID": "4097"}, None),
        (OPEN_MPI_4, Cluster("Open MPI", "10.96.0.1:62624", 4, 3, [1])),
        (
            OPEN_MPI_5 | {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:99"},
            Cluster("Open MPI", "10.0.0.1:99", 4, 3, [1]),
        ),
        # mpirun starts its daemons with srun: what Slurm says of them is not of our processes.
        (STEP | OPEN_MPI_4, Cluster("Open MPI", "10.96.0.1:62624", 4, 3, [1])),
        # Several processes on one host of a Slurm job, as launch/local.sh starts them.
        (SHELL | ONE_HOST | EXPLICIT, Cluster("JAX's variables", "10.0.0.1:99", 3, 2)),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),  # a notebook's TPU
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.9"}, None),  # a pod that is no part of a job
    ],
)
def test_what_launchers_set(environment, variables, found):
    environment(variables)
    assert find_cluster(required=False) == found


@pytest.mark.parametrize(
    ("variables", "required", "words"),
    [
        ({}, True, "--distributed: nothing names the other hosts; start all with srun"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, False, "so JAX_NUM_PROCESSES must be a number"),
        (EXPLICIT | {"JAX_COORDINATOR_ADDRESS": "a"}, False, "must be HOST:PORT; it is 'a'"),
        (STEP | EXPLICIT, False, "JAX_NUM_PROCESSES is 3, but by Slurm it is 8; unset one"),
        (
            STEP | {"JAX_PROCESS_ID": "0"},
            False,
            "JAX_PROCESS_ID is 0, but by Slurm it is 5; unset one",
        ),
        (OPEN_MPI_5, False, "Open MPI does not name the host of process 0; set JAX_COORD"),
        (SHELL, False, "Slurm job 4097 has 2 hosts, but srun has not started this process"),
        (SCRIPT, False, "env -u SLURM_JOB_ID"),
        ({"SLURM_JOB_ID": "4097"}, True, "incompletely: 'SLURM_JOB_NODELIST' is not set"),
        ({"JOB_COMPLETION_INDEX": "1"}, True, "JAX needs the package `kubernetes`"),
    ],
)
def test_what_is_missing_or_disagrees_is_one_sentence(environment, variables, required, words):
    environment(variables)
    with pytest.raises(ConfigError) as error:
        find_cluster(required)
    assert words in str(error.value)
    assert len(error.value.problems) == 1


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho gpu07; echo gpu08\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.mark.usefixtures("scontrol")
def test_hosts_of_a_slurm_job_that_are_entered_by_ssh(environment):
    environment(SCRIPT | {"SLURMD_NODENAME": "gpu08"})
    assert find_cluster(required=True) == Cluster("Slurm", "gpu07:61441", 2, 1)
    environment({"SLURMD_NODENAME": "login1"})
    with pytest.raises(ConfigError, match="login1, is not one of Slurm job 4097: gpu07, gpu08"):
        find_cluster(required=True)


@pytest.fixture
def tpu_vm(monkeypatch):
    """A machine with a TPU, for JAX's detection and ours; names of hosts are all known."""
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr("gpt_pjit.core.cluster.discovery._has_tpu", lambda: True)
    monkeypatch.setattr("socket.gethostbyname", lambda name: "10.0.0.1")


@pytest.fixture
def metadata(environment):
    """A server of metadata on loopback, as Google's cloud has one; gives the values it serves."""
    values = {"tpu-env": "ACCELERATOR_TYPE: 'v4-16'"}

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(values[self.path.rpartition("/")[2]].encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever).start()
        environment({"GCE_METADATA_IP": f"127.0.0.1:{server.server_port}"})
        yield values
        server.shutdown()


@pytest.mark.usefixtures("tpu_vm", "metadata")
def test_gke(environment):
    environment(GKE)
    assert find_cluster(required=False) == Cluster("the TPU pod", "w-0.job:8482", 2, 1)
    environment({"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"})
    environment({"MEGASCALE_COORDINATOR_ADDRESS": "first.job:8080"})
    assert find_cluster(required=False) == Cluster("the TPU pod", "first.job:8482", 4, 3)


@pytest.mark.usefixtures("tpu_vm")
def test_tpu_vm(metadata):
    metadata |= {
        "agent-worker-number": "1",
        "worker-network-endpoints": "a:0:10.1.0.5,b:1:10.1.0.6",
    }
    assert find_cluster(required=False) == Cluster("the TPU pod", "10.1.0.5:8482", 2, 1)


@pytest.mark.usefixtures("tpu_vm")
def test_a_tpu_outside_the_cloud(environment):
    """Nobody answers for its metadata: it is alone."""
    environment({"GCE_METADATA_IP": "127.0.0.1:9"})
    assert find_cluster(required=False) is None


def test_the_room_imports_no_jax():
    """A mistake on one machine is answered at once."""
    code = "import gpt_pjit.core.cluster, gpt_pjit.commandline, sys; sys.exit('jax' in sys.modules)"
    assert os.spawnl(os.P_WAIT, sys.executable, sys.executable, "-c", code) == 0
