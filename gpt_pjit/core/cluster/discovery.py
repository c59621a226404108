"""Which processes make up a run: from variables, Open MPI, Slurm, a TPU pod or Kubernetes.

JAX's own detection answers where it is right. Ours differs in four places:

- Slurm: JAX counts `SLURM_NTASKS`, which a shell opened by salloc keeps from the allocation, so one
  process waits for tasks that nobody starts; the number of tasks of the step is the right one.
- Slurm: outside a step JAX finds nothing, and each host would train alone.
- Slurm and Open MPI: JAX gives each process one GPU, even where it is alone on its host.
- Kubernetes: JAX takes any pod for a part of a job; a pod without `JOB_COMPLETION_INDEX` is alone.
"""

import dataclasses
import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_pjit.core.errors import ConfigError

ADDRESS, COUNT, ID = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
SOURCE = "environment"
SECONDS_FOR_NAMES = 300  # until the name of a pod's first host can be resolved
NO_STEP = 0xFFFFFF00  # Slurm's ids from here on are of scripts, and of shells that salloc opens
NOWHERE = (
    f"--distributed: nothing names the other hosts; start all with srun or mpirun, or set {ADDRESS}"
    f", {COUNT} and {ID}, or leave out --distributed to use this machine alone"
)


@dataclass(frozen=True)
class Cluster:
    """This `process` of `processes`, and `address`, the HOST:PORT where process 0 listens."""

    source: str
    address: str
    processes: int
    process: int
    gpus: list[int] | None = None  # those of the host that are this process's; None for all


def find_cluster(required: bool) -> Cluster | None:
    """The cluster that the environment describes, or None where this process is alone.

    `required` is the flag --distributed: ConfigError where nothing names the other hosts.
    """
    env = os.environ
    try:
        found = _found(required)
    except ConfigError:
        raise
    except (KeyError, ValueError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        reason = f"{error} is not set" if isinstance(error, KeyError) else f"{error}"
        problem = f"the environment describes the hosts incompletely: {' '.join(reason.split())}"
        raise ConfigError([f"{problem}; set {ADDRESS}, {COUNT} and {ID}"], SOURCE) from None
    if ADDRESS in env or COUNT in env or ID in env:
        found = _with_variables(found)
    elif found is None and required:
        raise ConfigError([NOWHERE], "flags")
    if found and not found.address:
        problem = f"{found.source} does not name the host of process 0; set {ADDRESS}=HOST:PORT"
        raise ConfigError([problem], SOURCE)
    return found if found and found.processes > 1 else None


def _with_variables(found: Cluster | None) -> Cluster:
    """The cluster of JAX's variables; where one is not set, what was `found` stands in for it."""
    several = found if found and found.processes > 1 else None

    def number(name: str, other: int | None) -> int:
        text = os.environ.get(name) or ("" if other is None else str(other))
        if not text.isdecimal():
            given = next(variable for variable in (ADDRESS, COUNT, ID) if variable in os.environ)
            problem = f"{given} is set, so {name} must be a number; it is {text!r}"
            raise ConfigError([problem], "environment")
        if several and other is not None and int(text) != other:
            problem = f"{name} is {text}, but by {several.source} it is {other}; unset one of them"
            raise ConfigError([problem], SOURCE)
        return int(text)

    processes = number(COUNT, several.processes if several else None)
    process = number(ID, several.process if several else None)
    address = os.environ.get(ADDRESS) or (several.address if several else "")
    if not address.rpartition(":")[2].isdecimal():
        problem = f"{ADDRESS} must be HOST:PORT; it is {address!r}"
        raise ConfigError([problem], "environment")
    if several:
        return dataclasses.replace(several, address=address)
    return Cluster("JAX's variables", address, processes, process)


def _found(required: bool) -> Cluster | None:
    env = os.environ
    if "OMPI_COMM_WORLD_SIZE" in env:  # first: mpirun starts its own daemons with srun
        return _open_mpi()
    if "SLURM_JOB_ID" in env:
        return _slurm(required)
    if "TPU_WORKER_HOSTNAMES" in env or "TPU_PROCESS_ADDRESSES" in env or _has_tpu():
        return _tpu()
    if required and "JOB_COMPLETION_INDEX" in env:
        return _kubernetes()
    return None


def _open_mpi() -> Cluster:
    from jax._src import clusters  # these have no public name

    env, kind = os.environ, clusters.OmpiCluster
    alone = int(env["OMPI_COMM_WORLD_LOCAL_SIZE"]) == 1
    # Open MPI 5 tells nobody where process 0 is.
    address = _address(kind) if kind.is_env_present() else ""
    rank, local = kind.get_process_id(), kind.get_local_process_id()
    return Cluster("Open MPI", address, kind.get_process_count(), rank, _gpus(alone, local))


def _slurm(required: bool) -> Cluster | None:
    env = os.environ
    if int(env.get("SLURM_STEP_ID", NO_STEP)) >= NO_STEP:
        return _slurm_without_a_step(required)
    from jax._src import clusters

    kind, processes = clusters.SlurmCluster, int(env["SLURM_STEP_NUM_TASKS"])
    alone = processes == int(env["SLURM_STEP_NUM_NODES"])
    rank, local = kind.get_process_id(), kind.get_local_process_id()
    return Cluster("Slurm", _address(kind), processes, rank, _gpus(alone, local))


def _slurm_without_a_step(required: bool) -> Cluster | None:
    """A shell or script of an allocation, or ssh to its hosts: one process for each host."""
    env = os.environ
    job, nodes = env["SLURM_JOB_ID"], env.get("SLURM_JOB_NUM_NODES", "1")
    if not required and nodes == "1":
        return None
    if not required:
        problem = (
            f"Slurm job {job} has {nodes} hosts, but srun has not started this process; start "
            "it on all of them with srun, or on this one alone with env -u SLURM_JOB_ID"
        )
        raise ConfigError([problem], SOURCE)
    command = ["scontrol", "show", "hostnames", env["SLURM_JOB_NODELIST"]]
    hosts = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    me = env.get("SLURMD_NODENAME", socket.gethostname().partition(".")[0])
    if me not in hosts:
        problem = f"this host, {me}, is not one of Slurm job {job}: {', '.join(hosts)}"
        raise ConfigError([problem], SOURCE)
    port = env.get("JAX_COORDINATOR_PORT", str(61440 + int(job) % 4096))  # as JAX, for a step
    return Cluster("Slurm", f"{hosts[0]}:{port}", len(hosts), hosts.index(me))


def _tpu() -> Cluster | None:
    env = os.environ
    workers = env.get("TPU_PROCESS_ADDRESSES", env.get("TPU_WORKER_HOSTNAMES", ","))
    if "," not in workers and "MEGASCALE_NUM_SLICES" not in env:
        return None  # one host: JAX would ask Google's cloud, which a notebook may not reach
    from jax._src import clusters

    try:
        present = (
            k for k in (clusters.GkeTpuCluster, clusters.GceTpuCluster) if k.is_env_present()
        )
        kind = next(present, None)
    except OSError:  # a TPU outside Google's cloud: nobody answers for its metadata
        return None
    if kind is None:
        return None
    return Cluster("the TPU pod", _address(kind), kind.get_process_count(), kind.get_process_id())


def _kubernetes() -> Cluster:
    from jax._src import clusters

    kind = clusters.K8sCluster
    if not kind.is_env_present():
        raise RuntimeError("JAX needs the package `kubernetes` to ask for them")
    return Cluster("Kubernetes", _address(kind), kind.get_process_count(), kind.get_process_id())


def _address(kind: Any) -> str:
    return kind.get_coordinator_address(
        timeout_secs=SECONDS_FOR_NAMES,
        override_coordinator_port=os.environ.get("JAX_COORDINATOR_PORT"),
    )


def _gpus(alone: bool, local: int | None) -> list[int] | None:
    """The GPUs of a process: all, where it is alone on its host or its launcher has chosen one."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", ",")
    return None if alone or local is None or "," not in chosen else [local]


def _has_tpu() -> bool:
    return any(Path("/dev").glob("accel*")) or any(Path("/dev/vfio").glob("[0-9]*"))
