"""Experiment trackers, which get the metrics of a run too: `WRITERS` lists them.

Each has a thread of its own and is imported there, so that one that is slow, fails or is not
installed costs the run nothing. Where they send, their own variables say: WANDB_PROJECT and
WANDB_MODE=offline, MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME, COMET_PROJECT_NAME and
COMET_START_ONLINE=false, CLEARML_API_HOST and CLEARML_OFFLINE_MODE=1.
"""

import dataclasses
import hashlib
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from gpt_pjit.config import Config, flatten
from gpt_pjit.core.console import warn
from gpt_pjit.core.files import is_remote

MOST_WAITING = 10_000  # lines
SECONDS_TO_END = 60.0
# What these two change in other libraries, or read of the code, unless told not to.
COMET_EXTRAS = [
    *("log_code", "log_graph", "log_git_patch", "parse_args", "auto_output_logging"),
    *("auto_param_logging", "auto_metric_logging", "auto_log_co2"),
]
CLEARML_EXTRAS = [
    *("detect_repository", "hydra", "scikit", "joblib", "matplotlib", "tensorflow", "tensorboard"),
    *("tfdefines", "pytorch", "megengine", "xgboost", "catboost", "fastai", "lightgbm", "gradio"),
]
Metrics = Mapping[str, float]


class Writer(Protocol):
    """What speaks to a tracker; starts of one workdir continue one run of it."""

    def write(self, step: int, at: float, metrics: Metrics) -> None:
        """Metrics of a step, written at the Unix time `at`."""

    def close(self) -> None:
        """All is written."""


class Tracker:
    """A `Writer` in its thread. A failure is one warning; the run goes on without it."""

    def __init__(self, name: str, workdir: Path, config: Config):
        self._name, self._missed = name, False
        self._lines: queue.Queue[tuple[int, float, Metrics] | None] = queue.Queue(MOST_WAITING)
        arguments = (WRITERS[name], workdir, config)
        self._thread = threading.Thread(target=self._work, args=arguments, daemon=True)
        self._thread.start()

    def write(self, step: int, metrics: Metrics) -> None:
        """Returns at once; what is not finite is left out."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        if self._thread.is_alive() and not self._lines.full():
            self._lines.put((step, time.time(), finite))
        elif self._thread.is_alive() and not self._missed:
            self._missed = True
            warn(f"{self._name} is falling behind; metrics from step {step} on are dropped there")

    def close(self) -> None:
        if self._thread.is_alive() and not self._lines.full():
            self._lines.put(None)
            self._thread.join(SECONDS_TO_END)
        if self._thread.is_alive():
            problem = f"{self._name} did not finish within {SECONDS_TO_END:.0f} s"
            warn(f"{problem}; some metrics may be missing there")

    def _work(self, make: Callable[[Path, Config], Writer], workdir: Path, config: Config) -> None:
        try:
            writer = make(workdir, config)
            for line in iter(self._lines.get, None):
                writer.write(*line)
            writer.close()
        except Exception as error:  # whatever a library may raise
            reason = str(error).partition("\n")[0]
            warn(f"{self._name}: {reason}; the run goes on without it")


class WandbWriter:
    """A run of Weights & Biases. It ignores steps before its last: redone ones are the same."""

    def __init__(self, workdir: Path, config: Config):
        import wandb

        self._run = wandb.init(
            dir=None if is_remote(workdir) else workdir,
            name=workdir.name,
            id=_identity(workdir),
            resume="allow",
            config=dataclasses.asdict(config),
        )

    def write(self, step: int, at: float, metrics: Metrics) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


class MlflowWriter:
    """A run of MLflow, with the fields of the config as its parameters."""

    def __init__(self, workdir: Path, config: Config):
        import mlflow

        self._entities, self._client = mlflow.entities, mlflow.MlflowClient()
        name = mlflow.environment_variables.MLFLOW_EXPERIMENT_NAME.get() or "gpt_pjit"
        experiment, tag = mlflow.set_experiment(name).experiment_id, _identity(workdir)
        if runs := self._client.search_runs([experiment], f"tags.workdir = '{tag}'"):
            self._run = runs[0].info.run_id
            return
        run = self._client.create_run(experiment, tags={"workdir": tag}, run_name=workdir.name)
        self._run = run.info.run_id
        for field, value in flatten(config).items():
            self._client.log_param(self._run, field, str(value)[:5000])

    def write(self, step: int, at: float, metrics: Metrics) -> None:
        stamp = round(at * 1000)
        line = [self._entities.Metric(name, x, stamp, step) for name, x in metrics.items()]
        self._client.log_batch(self._run, metrics=line)

    def close(self) -> None:
        self._client.set_terminated(self._run)


class CometWriter:
    """An experiment of Comet. Offline, each start leaves an archive with the key of the first."""

    def __init__(self, workdir: Path, config: Config):
        import comet_ml

        key = 2 * _identity(workdir)  # at least 32 characters
        folder = None if is_remote(workdir) else str(workdir / "comet")
        settings = comet_ml.ExperimentConfig(
            name=workdir.name,
            offline_directory=folder,
            display_summary_level=0,
            **dict.fromkeys(COMET_EXTRAS, False),
        )
        start = comet_ml.start
        self._run = start(experiment_key=key, mode="get_or_create", experiment_config=settings)
        self._run.log_parameters({field: str(value) for field, value in flatten(config).items()})

    def write(self, step: int, at: float, metrics: Metrics) -> None:
        self._run.log_metrics(dict(metrics), step=step)

    def close(self) -> None:
        self._run.end()


class ClearmlWriter:
    """A task of ClearML. Offline, each start is a session of its own, in ClearML's cache."""

    def __init__(self, workdir: Path, config: Config):
        from clearml import Task

        tag = _identity(workdir)
        earlier = [] if Task.is_offline() else Task.get_tasks(project_name="gpt_pjit", tags=[tag])
        Task.set_random_seed(None)  # it would seed the generators of the process
        Task._report_subprocess_enabled = False  # a fork would share our lock and hear our signals
        self._run = Task.init(
            "gpt_pjit",
            workdir.name,
            tags=[tag],
            reuse_last_task_id=earlier[0].id if earlier else False,
            continue_last_task=0,  # steps are counted from step 0
            auto_connect_frameworks=dict.fromkeys(CLEARML_EXTRAS, False),
            auto_connect_arg_parser=False,
            auto_connect_streams=False,
        )
        fields = {f"config/{field}": str(value) for field, value in flatten(config).items()}
        self._run.set_parameters(fields)

    def write(self, step: int, at: float, metrics: Metrics) -> None:
        for name, value in metrics.items():
            title, _, series = name.rpartition("/")
            self._run.get_logger().report_scalar(title, series, value, step)

    def close(self) -> None:
        self._run.close()


WRITERS: dict[str, Callable[[Path, Config], Writer]] = {
    "wandb": WandbWriter,
    "mlflow": MlflowWriter,
    "comet": CometWriter,
    "clearml": ClearmlWriter,
}


def track(names: Sequence[str], config: Config, workdir: Path) -> list[Tracker]:
    """The trackers of a run, by their `names` in `WRITERS`."""
    return [Tracker(name, workdir, config) for name in names]


def _identity(workdir: Path) -> str:
    """The same for each start in a workdir."""
    return hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:16]
