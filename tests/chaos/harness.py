"""Runs of a tiny model in real processes, which end in every way that a run can end."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gpt_pjit.checkpoint_arrays import read_arrays, saved_shapes
from gpt_pjit.config import Config, replaced
from gpt_pjit.core.checkpoints import saved_steps
from gpt_pjit.data import prepare_text
from tests.helpers import ROOT, write_texts

STEPS, EVERY, EVAL_EVERY = 24, 4, 6
FLAGS = {
    "model.n_layers": 2,
    "model.d_model": 32,
    "model.d_ff": 64,
    "model.n_heads": 2,
    "model.vocab_size": 288,
    "model.dropout_residual": 0.1,
    "model.dropout_attention": 0.1,
    "data.text_exclude": "",
    "data.tokenizer": "bytes",
    "data.validation_fraction": 0.05,
    "data.sequence_length": 16,
    "data.batch_size": 16,
    "optim.microbatches": 2,
    "optim.steps": STEPS,
    "optim.peak_lr": 2e-3,
    "optim.warmup_steps": 4,
    "eval.every": EVAL_EVERY,
    "checkpoint.every": EVERY,
    "log.every": 1,
    "log.patience": 5.0,
    "sample.tokens": 0,
}


def write_corpus(folder):
    """Texts, and in `tokens` the set made of them."""
    write_texts(folder, files=40, lines=40)
    text = {"data.text": f"{folder}/*.txt"}
    prepare_text(replaced(Config(), FLAGS | text), folder / "tokens")
    return folder


@dataclass
class Ended:
    codes: list[int]
    errors: list[str]
    seconds: float  # from the first fault's report, or the start, until all had ended


@dataclass
class Trainer:
    """A run in `workdir` by `processes`; `start` it, and `wait` for its end."""

    workdir: Path
    corpus: Path
    processes: int = 1
    devices: int = 2
    flags: dict = field(default_factory=dict)
    cache: Path | None = None  # of compiled programs, which makes restarts fast
    environment: dict = field(default_factory=dict)

    def start(self, faults=(), off="", prefixes=None):
        """`prefixes`: for a process, the words before its command."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        data = {"data.text": "", "data.path": f"{self.corpus}/tokens"}
        if any(fault["at"] == "data" for fault in faults):  # which takes a second
            data = {"data.text": f"{self.corpus}/*.txt"}
        fields = FLAGS | data | self.flags
        arguments = ["--config=configs/quickstart.py", f"--workdir={self.workdir}"]
        arguments += [f"--config.{name}={value}" for name, value in fields.items()]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(self.devices),
            "CHAOS": json.dumps(list(faults)),
            "CHAOS_OFF": off,
        }
        if self.cache:
            environment |= {
                "JAX_COMPILATION_CACHE_DIR": str(self.cache),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
            }
        name = f"{self.workdir.name}-{id(self)}"  # not beside it: that disk may be full
        folder = Path(tempfile.gettempdir())
        self.logs = [folder / f"{name}.{number}.log" for number in range(self.processes)]
        self.started = time.monotonic()
        self.running = []
        for number, log in enumerate(self.logs):
            before = (prefixes or {}).get(number, ())
            own = {}
            if self.processes > 1:
                own = {
                    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                    "JAX_NUM_PROCESSES": str(self.processes),
                    "JAX_PROCESS_ID": str(number),
                }
            with log.open("w") as output:
                self.running.append(
                    subprocess.Popen(
                        [*before, sys.executable, "-m", "tests.chaos.runner", *arguments],
                        cwd=ROOT, stdout=output, stderr=output, start_new_session=True,
                        env=environment | own | self.environment,
                    )
                )  # fmt: skip
        return self

    def await_event(self, text, seconds=240):
        """Waits until a process has printed `text`; the time of an end is counted from here."""
        deadline = time.monotonic() + seconds
        while not any(text in log.read_text(errors="replace") for log in self.logs):
            assert time.monotonic() < deadline, [log.read_text() for log in self.logs]
            time.sleep(0.02)
        self.started = time.monotonic()

    def signal(self, number, processes=None):
        for process in self.running if processes is None else [self.running[p] for p in processes]:
            process.send_signal(number)

    def wait(self, seconds=300):
        """How all ended; after `seconds`, or of processes stopped, whatever is left is killed."""
        deadline = time.monotonic() + seconds
        for process in self.running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0.1))
        took = time.monotonic() - self.started
        alive = [p for p in self.running if p.poll() is None]
        for process in alive:
            os.killpg(process.pid, signal.SIGKILL)
        codes = [None if p in alive else p.returncode for p in self.running]
        for process in self.running:
            process.wait()
        return Ended(codes, [log.read_text(errors="replace") for log in self.logs], took)

    def run(self, faults=(), off="", prefixes=None, seconds=300):
        return self.start(faults, off, prefixes).wait(seconds)

    def survivors(self):
        """Processes of this run that are still there."""
        found = subprocess.run(
            ["pgrep", "-f", f"workdir={self.workdir}"], capture_output=True, text=True, check=False
        )
        return found.stdout.split()

    def lines(self):
        text = (self.workdir / "metrics.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def losses(self, name="train/loss"):
        """The metric of each step; every step must be there once."""
        found = [(line["step"], line[name]) for line in self.lines() if name in line]
        assert len(dict(found)) == len(found), f"logged twice: {found}"
        return dict(found)

    def final_state(self):
        directory = self.workdir / "checkpoints"
        step = saved_steps(directory)[-1]
        return step, read_arrays(directory, step, saved_shapes(directory, step))


def assert_same_state(one, other):
    import jax

    assert one[0] == other[0]
    for path, (a, b) in enumerate(
        zip(jax.tree.leaves(one[1]), jax.tree.leaves(other[1]), strict=True)
    ):
        assert np.array_equal(a, b), path
