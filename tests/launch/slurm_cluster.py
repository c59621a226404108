"""A Slurm cluster of one node on this machine, in a folder: with its own munge and ports."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.processes import wait_until

DAEMONS = ("munged", "slurmctld", "slurmd")
# A requeued job waits for `cred_expire` seconds, by default 120.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=15
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
KillWait=10
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Cluster:
    folder: Path

    def run(self, *command: object, **environment: str) -> str:
        return subprocess.run(
            [*map(str, command)],
            env=os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")} | environment,
            cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True, timeout=60,
        ).stdout  # fmt: skip

    def job(self, number: str) -> dict[str, str]:
        """The fields of a job: JobState, Restarts, ExitCode and so on."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def end_of(self, number: str) -> dict[str, str]:
        """Waits until the job has left the queue for good."""
        running = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED")
        wait_until(lambda: self.job(number)["JobState"] not in running)
        return self.job(number)


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[Cluster]:
    host, user = socket.gethostname().split(".")[0], os.environ.get("USER", "root")
    ports = {"controller": free_port(), "node": free_port()}
    config = CONFIG.format(host=host, user=user, folder=folder, **ports)
    (folder / "slurm.conf").write_text(config)
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o400)
    cluster = Cluster(folder)
    munge = {"key": "key-file", "munge.socket": "socket", "pid": "pid-file", "seed": "seed-file"}
    options = [f"--{option}={folder / name}" for name, option in munge.items()]
    with ExitStack() as daemons:
        for daemon in (
            ["munged", "--foreground", "--force", *options, f"--log-file={folder}/munged.log"],
            ["slurmctld", "-D", "-c"],
            ["slurmd", "-D"],
        ):
            daemons.enter_context(running(daemon, folder))
        wait_until(lambda: "idle" in cluster.run("sinfo", "--noheader", "--format=%T"), 30)
        yield cluster


@contextmanager
def running(command: list[str], folder: Path) -> Iterator[None]:
    with open(folder / f"{command[0]}.out", "w") as log:
        path = shutil.which(command[0], path=f"{os.environ['PATH']}:/usr/sbin")
        assert path, command
        environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        process = subprocess.Popen([path, *command[1:]], env=environment, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
