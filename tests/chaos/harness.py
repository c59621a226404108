"""Runs of a tiny model in real processes, which end in every way that a run can end."""

import contextlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gpt_pjit.checkpoint_arrays import read_arrays, saved_shapes
from gpt_pjit.config import Config, replaced
from gpt_pjit.core.checkpoints import saved_steps
from gpt_pjit.data import prepare_text
from tests.helpers import write_texts
from tests.processes import Process, by_step, free_address, logged, member, run_flags, wait_for_line

STEPS, EVERY, EVAL_EVERY = 24, 4, 6
FLAGS = {
    "model.d_model": 32,
    "model.d_ff": 64,
    "model.n_heads": 2,
    "model.dropout_residual": 0.1,
    "model.dropout_attention": 0.1,
    "data.validation_fraction": 0.05,
    "data.sequence_length": 16,
    "data.batch_size": 16,
    "optim.microbatches": 2,
    "optim.steps": STEPS,
    "optim.peak_lr": 2e-3,
    "optim.warmup_steps": 4,
    "eval.every": EVAL_EVERY,
    "checkpoint.every": EVERY,
    "log.patience": 5.0,
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
    compiles: bool = False  # each start anew, whatever others have kept
    environment: dict = field(default_factory=dict)

    def start(self, faults=(), off="", prefixes=None):
        """`prefixes`: for a process, the words before its command."""
        data = {"data.text": "", "data.path": f"{self.corpus}/tokens"}
        if any(fault["at"] == "data" for fault in faults):  # which takes a second
            data = {"data.text": f"{self.corpus}/*.txt"}
        fields = FLAGS | data | self.flags
        arguments = run_flags(self.workdir, fields)
        environment = {"CHAOS": json.dumps(list(faults)), "CHAOS_OFF": off}
        if self.compiles:
            environment["JAX_ENABLE_COMPILATION_CACHE"] = "0"
        address, self.running = free_address(), []
        self.started = time.monotonic()
        for number in range(self.processes):
            before = (prefixes or {}).get(number, ())
            command = [*before, sys.executable, "-m", "tests.chaos.runner", *arguments]
            own = member(number, self.processes, address) if self.processes > 1 else {}
            variables = environment | own | self.environment
            self.running.append(Process(command, devices=self.devices, **variables))
        return self

    def start_until_fault(self, fault, **options):
        """Starts, and waits until a process has reported the `fault`."""
        self.start([fault], **options)
        self.await_event("chaos: ")

    def await_event(self, text, seconds=240):
        """Waits until a process has printed `text`; the time of an end is counted from here."""
        wait_for_line(self.running, text, seconds)
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
        codes = [process.poll() for process in self.running]
        ends = [p.kill_group() if p.poll() is None else p.ended() for p in self.running]
        return Ended(codes, [end.stdout + end.stderr for end in ends], took)

    def run(self, faults=(), off="", prefixes=None, seconds=300):
        return self.start(faults, off, prefixes).wait(seconds)

    def survivors(self):
        """Processes of this run that are still there."""
        found = subprocess.run(
            ["pgrep", "-f", f"workdir={self.workdir}"], capture_output=True, text=True, check=False
        )
        return found.stdout.split()

    def lines(self):
        return logged(self.workdir)

    def losses(self, name="train/loss"):
        return by_step(self.workdir, name)

    def final_state(self):
        directory = self.workdir / "checkpoints"
        step = saved_steps(directory)[-1]
        return step, read_arrays(directory, step, saved_shapes(directory, step))


def assert_same_run(run, expected):
    """Both have the same losses, and end with the same state, to the bit."""
    import jax

    assert run.losses() == expected.losses()
    (step, state), (other_step, other) = run.final_state(), expected.final_state()
    assert step == other_step
    leaves = zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True)
    for number, (a, b) in enumerate(leaves):
        assert np.array_equal(a, b), number
