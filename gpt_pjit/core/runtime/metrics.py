"""Metrics: `metrics.jsonl`, one object a line with its `step`, and the same for TensorBoard."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import jax

from gpt_pjit.config import Config
from gpt_pjit.core.chips import chip_of_kind
from gpt_pjit.core.console import Progress, say, warn
from gpt_pjit.core.errors import ConfigError, IntegrityError
from gpt_pjit.core.files import Mirror, write_whole
from gpt_pjit.core.parameters import flops_per_token
from gpt_pjit.core.runtime.together import from_process_0

MAX_SKIPPED = 10  # steps in a row that are not finite: the run has diverged

T = TypeVar("T")


class MetricsWriter:
    """Writes on process 0, from step `start` on. What cannot be written is a warning.

    Lines of later steps, left by a killed run, are dropped: those steps are about to run again. In
    a bucket, the files are replaced every minute, before each save and evaluation, and at the end.
    """

    def __init__(self, workdir: Path, start: int):
        self.file = self.tensorboard = self.mirror = None
        self.validated = False  # whether the validation of `start` is there
        if jax.process_index() != 0:
            return
        with self._warning():
            self.mirror = Mirror(workdir)
            path, before = self.mirror.folder / "metrics.jsonl", workdir / "metrics.jsonl"
            if before.exists():
                kept = [line for line in before.read_text().splitlines() if _step(line) <= start]
                write_whole(path, "".join(line + "\n" for line in kept))
                own = [line for line in kept if _step(line) == start]
                self.validated = any("validation/loss" in json.loads(line) for line in own)
            self.file = path.open("a", buffering=1)
            from tensorboardX import SummaryWriter  # imports torch, if installed: seconds

            folder = str(self.mirror.folder / "tensorboard")
            self.tensorboard = SummaryWriter(folder, purge_step=start + 1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        if self.file:
            with self._warning():
                shown = {n: x if math.isfinite(x) else None for n, x in metrics.items()}
                self.file.write(json.dumps({"step": step, **shown}) + "\n")
        if self.tensorboard:
            with self._warning():
                for name, value in metrics.items():
                    self.tensorboard.add_scalar(name, value, step)
        if self.mirror and self.mirror.is_due:
            self.copy()

    def copy(self) -> None:
        """Puts what was written into the bucket, if the workdir is in one."""
        with self._warning():
            if self.mirror and self.tensorboard:
                self.tensorboard.flush()
                self.mirror.copy()

    def close(self) -> None:
        for writer in (self.file, self.tensorboard, self.mirror):
            with self._warning():
                if writer:
                    writer.close()

    @contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ConfigError) as error:
            warn(f"metrics are lost: {error}")


def _step(line: str) -> float:
    """The step of a line; a line cut short by a kill has none, and is dropped."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


class Throughput:
    """Tokens a second, the share of time spent waiting for data, and MFU where the chip's peak is
    known, between two calls of `measure`.

    MFU counts the floating-point operations of `flops_per_token`, over the peak of all devices.
    """

    def __init__(self, config: Config, n_params: int):
        length = config.data.sequence_length
        self.tokens_per_step = config.data.batch_size * length
        self.flops_per_token = flops_per_token(config.model, n_params, length)
        chip = chip_of_kind(jax.devices()[0].device_kind)
        self.peak = chip.peak_flops * jax.device_count() if chip else 0.0
        self.restart(0)

    def restart(self, step: int) -> None:
        """Measures from now on: leaves out compiling, evaluating and saving."""
        self.step, self.time = step, time.perf_counter()
        self.waited = 0.0

    def measure(self, step: int) -> dict[str, float]:
        steps, seconds, waited = step - self.step, -self.time, self.waited
        self.restart(step)
        seconds += self.time
        rate = steps * self.tokens_per_step / seconds
        metrics = {
            "throughput/tokens_per_second": rate,
            "throughput/data_wait": waited / seconds,
        }
        if self.peak:
            metrics["throughput/mfu"] = rate * self.flops_per_token / self.peak
        return metrics


class StepLog:
    """Metrics of training steps, fetched one step late so that devices never wait for a host."""

    def __init__(self, config: Config, workdir: Path, n_params: int, start: int):
        self.every, self.total = config.log.every, config.optim.steps
        self.first, self.good = start + 1, start
        self.writer = MetricsWriter(workdir, start)
        self.validated: bool = from_process_0(self.writer.validated)
        self.progress = Progress("step", self.total, done=start, on_stdout=True)
        self.throughput = Throughput(config, n_params)
        self.pending: tuple[int, dict[str, jax.Array]] | None = None

    def push(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Call right after dispatching `step`: waits for the step before it, writes its metrics.

        Raises IntegrityError after too many steps in a row that were not finite.
        """
        # Two steps in flight keep a device busy; more would delay signals and errors.
        self.flush()
        self.pending = (step, metrics)
        if step == self.first:
            self.flush()
            self.throughput.restart(step)  # compiling is not training

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches; the time until each arrives counts as waiting for data."""
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.throughput.waited += time.perf_counter() - start
            yield batch

    def flush(self) -> None:
        if not self.pending:
            return
        (step, arrays), self.pending = self.pending, None
        metrics = {name: float(value) for name, value in jax.device_get(arrays).items()}
        loss, norm = metrics["train/loss"], metrics["train/grad_norm"]
        if math.isfinite(loss) and math.isfinite(norm):
            self.good = step
        else:
            warn(f"step {step} is skipped: loss {loss}, gradient norm {norm}")
            metrics["train/skipped"] = 1.0
        if step % self.every and step not in (1, self.total) and self.good == step:
            return
        shown = f"loss {loss:.4f}"
        if step != self.first:
            metrics |= self.throughput.measure(step)
            shown += f"  {metrics['throughput/tokens_per_second']:,.0f} tokens/s"
        self.writer.write(step, metrics)
        self.progress.update(step, shown)
        if step - self.good >= MAX_SKIPPED:
            problem = f"the last {MAX_SKIPPED} steps had a loss or gradient norm that is not finite"
            remedy = "the checkpoints before it are good; a lower learning rate may help"
            raise IntegrityError([f"{problem}; step {self.good} was the last good one; {remedy}"])

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self.writer.write(step, metrics)
        shown = "  ".join(f"{name.split('/')[1]} {value:.4f}" for name, value in metrics.items())
        say(f"step {step}  validation  {shown}")

    @contextmanager
    def pause(self, step: int) -> Iterator[None]:
        """For work that must not count as training time."""
        self.flush()
        self.writer.copy()
        yield
        self.throughput.restart(step)

    def close(self) -> None:
        self.flush()
        self.progress.close()
        self.writer.close()
