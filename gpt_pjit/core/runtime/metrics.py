"""Metrics: `metrics.jsonl`, one object a line with its `step` and the Unix `time`, and the same for
TensorBoard; beside it the lines of `timeline.jsonl`, and of `samples.jsonl`, each a `step`, a
`prompt`, and the `text` that the model wrote after it.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import jax

from gpt_pjit.config import Config
from gpt_pjit.core.chips import chip_of_kind
from gpt_pjit.core.console import Progress, say, warn
from gpt_pjit.core.errors import ConfigError, IntegrityError
from gpt_pjit.core.files import Mirror, write_whole
from gpt_pjit.core.parameters import flops_per_token
from gpt_pjit.core.runtime.pace import DEVICES, SLOW_SHARE, Pace
from gpt_pjit.core.runtime.planned import Planned
from gpt_pjit.core.runtime.screen import Cells
from gpt_pjit.core.runtime.timeline import NAME as TIMELINE, Line, Timeline
from gpt_pjit.core.runtime.together import from_process_0
from gpt_pjit.core.runtime.watch import Watch
from gpt_pjit.core.runtime.workdir import read_run

METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
OVER_PLAN = 0.15  # of the planned step; what is longer is worth a line
SLOW_SAVE = 5.0  # seconds that the loop waits
MAX_SKIPPED = 10  # steps in a row that are not finite: the run has diverged

T = TypeVar("T")
Track = Callable[[], Sequence[Any]]  # makes trackers, which have `write(step, metrics)` and `close`


class MetricsWriter:
    """Writes on process 0, from step `start` on. What cannot be written is a warning.

    Metrics of later steps, left by a killed run, are dropped, since those steps are about to run
    again; so are samples, of step `start` too. In a bucket, the files are replaced every minute,
    before each save and evaluation, and at the end.
    """

    def __init__(self, workdir: Path, start: int, track: Track = tuple):
        self.file = self.timeline = self.tensorboard = self.mirror = None
        self.written: list[str] = []  # the groups of metrics that are there of step `start`
        self.validations: list[float] = []  # of earlier starts
        self.trackers: Sequence[Any] = ()
        if jax.process_index() != 0:
            return
        self.trackers = track()
        with self._warning():
            self.mirror = Mirror(workdir)
            path = self.mirror.folder / METRICS
            kept = _kept(workdir / METRICS, path, start)
            own = [json.loads(line) for line in kept if _step(line) == start]
            self.written = sorted({name.partition("/")[0] for line in own for name in line})
            losses = [json.loads(x)["validation/loss"] for x in kept if '"validation/loss":' in x]
            self.validations = [math.nan if loss is None else loss for loss in losses]
            self.file = path.open("a", buffering=1)
            _kept(workdir / SAMPLES, self.mirror.folder / SAMPLES, start - 1)
            path = self.mirror.folder / TIMELINE
            _kept(workdir / TIMELINE, path, math.inf)  # all, but none without its end
            self.timeline = path.open("a", buffering=1)
            from tensorboardX import SummaryWriter  # imports torch, if installed: seconds

            folder = str(self.mirror.folder / "tensorboard")
            self.tensorboard = SummaryWriter(folder, purge_step=start + 1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        if self.file:
            with self._warning():
                shown = {n: x if math.isfinite(x) else None for n, x in metrics.items()}
                line = {"step": step, "time": time.time(), **shown}
                self.file.write(json.dumps(line) + "\n")
        if self.tensorboard:
            with self._warning():
                for name, value in metrics.items():
                    self.tensorboard.add_scalar(name, value, step)
        for tracker in self.trackers:
            tracker.write(step, metrics)
        if self.mirror and self.mirror.is_due:
            self.copy()

    def write_samples(self, step: int, texts: Sequence[tuple[str, str]]) -> None:
        if self.mirror:
            with self._warning(), (self.mirror.folder / SAMPLES).open("a") as file:
                for prompt, text in texts:
                    line = {"step": step, "prompt": prompt, "text": text}
                    file.write(json.dumps(line) + "\n")

    def write_span(self, line: Line) -> None:
        if self.timeline:
            with self._warning():
                self.timeline.write(json.dumps(line) + "\n")

    def copy(self) -> None:
        """Puts what was written into the bucket, if the workdir is in one."""
        with self._warning():
            if self.mirror and self.tensorboard:
                self.tensorboard.flush()
                self.mirror.copy()

    def close(self) -> None:
        for writer in (self.file, self.timeline, self.tensorboard, self.mirror, *self.trackers):
            with self._warning():
                if writer:
                    writer.close()

    @contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ConfigError) as error:
            warn(f"metrics could not be written: {error}")


def _kept(source: Path, target: Path, last: float) -> list[str]:
    """The lines of a file up to step `last`, with which `target` begins."""
    if not source.exists():
        return []
    kept = [line for line in source.read_text().splitlines() if _step(line) <= last]
    write_whole(target, "".join(line + "\n" for line in kept))
    return kept


def _step(line: str) -> float:
    """The step of a line; a line cut short by a kill has none, and is dropped."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


class Throughput:
    """Tokens a second, the share of time spent waiting for data, and MFU where the chip's peak is
    known.

    MFU counts the floating-point operations of `flops_per_token`, over the peak of all devices.
    """

    def __init__(self, config: Config, n_params: int):
        length = config.data.sequence_length
        self.tokens_per_step = config.data.batch_size * length
        self.flops_per_token = flops_per_token(config.model, n_params, length)
        chip = chip_of_kind(jax.devices()[0].device_kind)
        self.peak = chip.peak_flops * jax.device_count() if chip else 0.0

    def of(self, span: Line, waited: float) -> dict[str, float]:
        """Those of the steps of a span, in which the host `waited` seconds for data."""
        rate = (span["to"] - span["from"]) * self.tokens_per_step / span["seconds"]
        metrics = {
            "throughput/tokens_per_second": rate,
            "throughput/data_wait": waited / span["seconds"],
        }
        if self.peak:
            metrics["throughput/mfu"] = rate * self.flops_per_token / self.peak
        return metrics


def memory_metrics() -> dict[str, float]:
    """Bytes on the fullest device of this process, now and at most; none where JAX does not say."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    names = {"bytes_in_use": "memory/bytes", "peak_bytes_in_use": "memory/peak_bytes"}
    told = {name: [of[key] for of in stats if key in of] for key, name in names.items()}
    return {name: float(max(values)) for name, values in told.items() if values}


class StepLog:
    """Metrics of training steps, fetched one step late so that devices never wait for a host.

    `timeline` has ended the span of the restore. Call `close` for a clean end of the run.
    """

    def __init__(
        self,
        config: Config,
        workdir: Path,
        n_params: int,
        start: int,
        timeline: Timeline,
        watch: Watch,
        planned: Planned | None = None,
        track: Track = tuple,
    ):
        self.every, self.total = config.log.every, config.optim.steps
        self.first, self.good = start + 1, start
        self.writer = MetricsWriter(workdir, start, track)
        self.written: list[str] = from_process_0(self.writer.written)
        self.cells = Cells(self.every, start)
        for loss in self.writer.validations:
            self.cells.hear({"validation/loss": loss})
        self.progress = Progress("step", self.total, done=start, cells=self.cells)
        self.progress.frame(start, "compile", at_once=True)
        self.throughput = Throughput(config, n_params)
        self.timeline, self.watch, self.pace = timeline, watch, Pace()
        self.planned, self.is_compared = planned, False
        self.saved, self.told_of_saves = (start, time.time()), False
        timeline.open(len(read_run(workdir)[1]["starts"]), start, self.writer.write_span)
        timeline.end("prepare")
        self.pending: tuple[int, dict[str, jax.Array], Future[float]] | None = None

    def push(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Call right after dispatching `step`: waits for the step before it, writes its metrics.

        Raises IntegrityError after too many steps in a row that were not finite.
        """
        dispatched, end = time.perf_counter(), self.pace.end_of(metrics["train/loss"])
        # Two steps in flight keep a device busy; more would delay signals and errors.
        if (done := self.flush()) is not None:
            self.pace.gap(done, dispatched)
        self.pending = (step, metrics, end)
        if step == self.first:
            self.flush()
            self.timeline.end("compile", step)
            self.pace.restart()

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches; the time until each arrives counts as waiting for data."""
        iterator = iter(batches)
        while True:
            with self.pace.part("data"):
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch

    def flush(self) -> float | None:
        """Waits for the step in flight, if there is one; returns when devices were done with it."""
        if not self.pending:
            return None
        (step, arrays, end), self.pending = self.pending, None
        with self.pace.part(DEVICES):
            done = end.result()
        with self.pace.part("write"):
            self._log(step, arrays)
        return done

    def _log(self, step: int, arrays: dict[str, jax.Array]) -> None:
        metrics = {name: float(value) for name, value in jax.device_get(arrays).items()}
        loss, norm = metrics["train/loss"], metrics["train/grad_norm"]
        if math.isfinite(loss) and math.isfinite(norm):
            self.good = step
        else:
            numbers = f"loss {loss}, gradient norm {norm}"
            warn(f"step {step} skipped: loss or gradient norm not finite ({numbers})")
            metrics["train/skipped"] = 1.0
        self.cells.hear(metrics)
        self.progress.frame(step)
        if step % self.every and step not in (1, self.total) and self.good == step:
            return
        shown = f"loss {loss:.4f}"
        if step != self.first:
            found = self._end_steps(step) | self.watch.stragglers.metrics
            found |= self._beside_the_plan(found["time/step"])
            self.cells.hear(found)
            metrics |= found
            shown += f"  {metrics['throughput/tokens_per_second']:,.0f} tokens/s"
        self.writer.write(step, metrics)
        self.progress.update(step, shown)
        if step - self.good >= MAX_SKIPPED:
            problem = f"the last {MAX_SKIPPED} steps had a loss or gradient norm that is not finite"
            remedy = "checkpoints up to that step are good; a lower learning rate may help"
            problem += f"; step {self.good} was the last good one; {remedy}"
            raise IntegrityError([problem], "run")

    def write(self, what: str, step: int, metrics: dict[str, float]) -> None:
        """Writes and says metrics whose names begin with `what`."""
        self.writer.write(step, metrics)
        self.cells.hear(metrics)
        shown = "  ".join(
            f"{name.partition('/')[2]} {value:.4f}"
            for name, value in metrics.items()
            if not name.endswith("_stderr")
        )
        say(f"step {step}  {what}  {shown}")

    @contextmanager
    def pause(self, what: str, step: int) -> Iterator[None]:
        """For work after `step` that is not training, as the timeline names it."""
        self.flush()
        if self.timeline.step < step:
            self._end_steps(step)
        self.writer.copy()
        self.progress.frame(step, what, at_once=True)
        try:
            yield
        finally:
            span = self.timeline.end(what)
            self.pace.restart()
            if what == "save" and step > self.saved[0]:
                self._judge_save(span)

    def close(self) -> None:
        self.timeline.end("end")
        self.writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """A clean end, or what was logged before a failure."""
        self.progress.close()
        if kind is None:
            self.close()
        else:
            self.writer.close()

    def _end_steps(self, step: int) -> dict[str, float]:
        """Ends a span of steps; returns the metrics of its speed."""
        span = self.timeline.end("steps", step, data=self.pace.idle["data"])
        steps, seconds = step - span["from"], span["seconds"]
        found = self.throughput.of(span, self.pace.spent["data"])
        found |= self.pace.metrics(steps, seconds) | memory_metrics()
        self.watch.tell(self.pace.report(step, steps, seconds))
        self.pace.restart()
        return found

    def _beside_the_plan(self, seconds: float) -> dict[str, float]:
        """The plan's step time; says, after the first log interval, if a step takes much longer."""
        if not self.planned:
            return {}
        over = seconds / self.planned.seconds - 1
        if not self.is_compared and over > OVER_PLAN:
            plan = f"{self.planned.seconds:.2f} s, {self.planned.path}"
            warn(f"a step takes {seconds:.2f} s, {over:.0%} more than planned ({plan})")
        self.is_compared = True
        return {"time/plan": self.planned.seconds}

    def _judge_save(self, span: Line) -> None:
        """Says, once, that saves hold up the run."""
        share = span["seconds"] / (span["at"] - self.saved[1])
        self.saved = span["to"], span["at"]
        if self.told_of_saves or span["seconds"] < SLOW_SAVE or share < SLOW_SHARE:
            return
        self.told_of_saves = True
        held = f"a save held up the run for {span['seconds']:.0f} s, {share:.0%} of the time"
        warn(f"{held} since the one before: the disk is slow, or checkpoint.every is low")
