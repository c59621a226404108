"""What a task gives, and the file of one model's results."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.evaluate.losses import Metrics

SETTINGS = "settings"  # the one key of a results file that is not a task
STATED = {"name": str, "checkpoint": str, "step": int, "dtype": str}  # in `settings`, always
COUNTS = ("items", "documents", "bytes", "tokens")  # in the details of a task, as are the next
CONDITIONS = ("window", "stride", "training_context", "num_fewshot")


@dataclass(frozen=True)
class Result:
    """The metrics of a task, with `_stderr` beside each estimate, and what explains them."""

    metrics: Metrics
    details: dict[str, Any] = field(default_factory=dict)


# A task ready to be scored; a group gives the results of all its tasks.
Job = Callable[[], dict[str, Result]]


@dataclass(frozen=True)
class ModelResults:
    """One model's results, `{task: {metric: value, metric_stderr: value}}`.

    `origin` is their file, or the citation of published ones, which have no `settings`.
    """

    name: str
    tasks: dict[str, dict[str, Any]]
    origin: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def published(self) -> bool:
        return not self.settings

    def details(self, task: str) -> dict[str, Any]:
        """What explains the figures of one task."""
        return self.settings.get("tasks", {}).get(task, {})


def results_record(results: dict[str, Result], settings: dict[str, Any]) -> dict[str, Any]:
    """What `--json` prints: metrics by task; `settings` explains them, under `tasks` by task."""
    metrics: dict[str, Any] = {task: result.metrics for task, result in results.items()}
    details = {task: result.details for task, result in results.items()}
    return metrics | {SETTINGS: settings | {"tasks": details}}


def from_record(record: dict[str, Any], origin: str = "") -> ModelResults:
    settings = record[SETTINGS]
    tasks = {task: metrics for task, metrics in record.items() if task != SETTINGS}
    return ModelResults(settings["name"], tasks, origin, settings)


def read_results(path: str | Path) -> ModelResults:
    """The results in a results.json, or in the folder that holds it; ConfigError if damaged."""
    if Path(path).is_dir():
        path = Path(path) / "results.json"
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path} cannot be read: {error.strerror}"], "results") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"{path} is not valid JSON: {error}"], "results") from None
    if damage := _damage(record):
        raise ConfigError([f"{path} is not a results file of evaluate: {damage}"], "results")
    return from_record(record, str(path))


def _damage(record: Any) -> str:
    """What keeps `record` from being what `results_record` gives; empty if nothing."""
    settings = record.get(SETTINGS) if isinstance(record, dict) else None
    if not isinstance(settings, dict):
        return f"it has no {SETTINGS}"
    if missing := [key for key, kind in STATED.items() if type(settings.get(key)) is not kind]:
        return f"its {SETTINGS} lack {', '.join(missing)}"
    details = settings.get("tasks")
    for task, metrics in record.items():
        if task == SETTINGS:
            continue
        if not isinstance(metrics, dict) or not all(map(_is_number, metrics.values())):
            return f"{task} is not of the form {{metric: number}}"
        if not isinstance(details, dict) or not _explains(details.get(task)):
            return f"its {SETTINGS} do not explain {task}"
    return ""


def _explains(details: Any) -> bool:
    if not isinstance(details, dict) or not isinstance(details.get("data", {}), dict):
        return False
    return all(type(details.get(key, 0)) is int for key in (*COUNTS, *CONDITIONS))


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, float) or (type(value) is int and abs(value) < 2**63)
