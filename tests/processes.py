"""Commands in real processes: one, or the processes of one run."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).parent.parent
TINY = {
    "model.n_layers": 2,
    "model.d_model": 64,
    "model.d_ff": 128,
    "model.vocab_size": 288,
    "data.text_exclude": "",
    "data.tokenizer": "bytes",
    "data.sequence_length": 32,
    "data.batch_size": 32,
    "log.every": 1,
    "sample.tokens": 0,
}


def environment(devices: int, variables: dict[str, str]) -> dict[str, str]:
    defaults = {
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHON": sys.executable,  # for launch/*.sh
        "PYTHONPATH": str(ROOT),
    }
    return os.environ | defaults | variables


def run_flags(workdir: Path | str, fields: Mapping[str, object]) -> list[str]:
    """The flags of a run in `workdir` of the config for tests, tiny but for these fields."""
    overrides = (f"--config.{name}={value}" for name, value in {**TINY, **fields}.items())
    return ["--config=tests/run_config.py", f"--workdir={workdir}", *overrides]


def logged(workdir: Path, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The lines that a run has written."""
    return [json.loads(line) for line in (workdir / file).read_text().splitlines()]


def by_step(workdir: Path, metric: str = "train/loss") -> dict[int, float]:
    """A metric of each step at which it was logged, which must be once."""
    found = [(line["step"], line[metric]) for line in logged(workdir) if metric in line]
    assert len(dict(found)) == len(found), f"logged twice: {found}"
    return dict(found)


class Process(subprocess.Popen[bytes]):
    """A command in a session of its own, on `devices` CPU devices; what it prints goes to files."""

    def __init__(
        self, command: Sequence[object], *, devices: int = 1, cwd: Path = ROOT, **variables: str
    ):
        self._files = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        super().__init__(
            [*map(str, command)], cwd=cwd, env=environment(devices, variables),
            stdout=self._files[0], stderr=self._files[1], start_new_session=True,
        )  # fmt: skip

    def printed(self) -> tuple[str, str]:
        """Its standard output and standard error until now."""
        if not self._files[0].closed:
            self._printed = _content(self._files[0]), _content(self._files[1])
        return self._printed

    def ended(self) -> subprocess.CompletedProcess[str]:
        """Of one that has: its code, and all that it printed."""
        output, errors = self.printed()
        for file in self._files:
            file.close()
        return subprocess.CompletedProcess(self.args, self.returncode, output, errors)

    def kill_group(self) -> subprocess.CompletedProcess[str]:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()
        return self.ended()


def _content(file: IO[bytes]) -> str:
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), size, 0).decode(errors="replace")  # moves no one's place in it


def start_run(processes: int, command: Sequence[object], **options: Any) -> list[Process]:
    """The processes of one run, which meet at a free port."""
    address = free_address()
    return [
        Process(command, **options | member(number, processes, address))
        for number in range(processes)
    ]


def member(number: int, processes: int, address: str) -> dict[str, str]:
    """The variables of one process of a run."""
    return {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(number),
    }


def wait_until(condition: Callable[[], object], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for_line(processes: Sequence[Process], words: str, seconds: float = 240) -> str:
    """The first line of any of them that holds `words`, as soon as it is there."""
    deadline = time.monotonic() + seconds
    while True:
        running = [process for process in processes if process.poll() is None]
        for text in (text for process in processes for text in process.printed()):
            for line in text.splitlines():
                if words in line:
                    return line
        if not running or time.monotonic() > deadline:
            _fail(processes, f"nobody said {words!r}")
        time.sleep(0.02)


def wait_for_end(
    processes: Sequence[Process], seconds: float = 300
) -> list[subprocess.CompletedProcess[str]]:
    """Codes and texts of all; if one still runs after `seconds`, all are killed, and that fails."""
    deadline = time.monotonic() + seconds
    try:
        for process in processes:
            process.wait(max(deadline - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        _fail(processes, f"not ended in {seconds} seconds")
    return [process.ended() for process in processes]


def run(
    command: Sequence[object], *, seconds: float = 300, **options: Any
) -> subprocess.CompletedProcess[str]:
    """`command`, until it has ended; options are those of `Process`."""
    return wait_for_end([Process(command, **options)], seconds)[0]


def _fail(processes: Sequence[Process], why: str) -> NoReturn:
    """Kills all; what each has printed last, and its code if it had ended, are in the message."""
    tails = [
        f"\n--- {number} ({process.poll()}): {text[-2000:]}"
        for number, process in enumerate(processes)
        for text in process.printed()
    ]
    for process in processes:
        process.kill_group()
    raise AssertionError(f"{why}:{''.join(tails)}")


def free_address() -> str:
    """HOST:PORT on loopback, where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def without_reader(command: Sequence[str], devices: int = 1, **variables: str) -> tuple[int, str]:
    """Exit code and standard error of a command whose standard output nobody reads."""
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(devices, variables),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        errors = process.stderr.read()
    return process.returncode, errors
