"""The file of results, and how a figure is written."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.evaluate.losses import SHARES
from gpt_pjit.evaluate.texts import Result

SETTINGS = "settings"  # the one key of a results file that is no task
PERCENT = ("acc", "acc_norm", *SHARES)


@dataclass(frozen=True)
class Row:
    """One model's results, `{task: {metric: value, metric_stderr: value}}`, and where from.

    `settings` explain them, under `tasks` those of each; of published ones there are none.
    """

    name: str
    results: dict[str, dict[str, Any]]
    source: str
    published: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    def details(self, task: str) -> dict[str, Any]:
        """What explains the figures of one task."""
        return self.settings.get("tasks", {}).get(task, {})


def results_record(results: dict[str, Result], settings: dict[str, Any]) -> dict[str, Any]:
    """What `--json` prints: metrics by task; `settings` holds what explains them, by task too."""
    metrics: dict[str, Any] = {task: result.metrics for task, result in results.items()}
    details = {task: result.details for task, result in results.items()}
    return metrics | {SETTINGS: settings | {"tasks": details}}


def row_of(record: dict[str, Any], source: str = "") -> Row:
    settings = record[SETTINGS]
    results = {task: metrics for task, metrics in record.items() if task != SETTINGS}
    return Row(settings["name"], results, source, settings=settings)


def read_results(path: str | Path) -> Row:
    """The row of a results.json, or of the folder with it; ConfigError where it is none."""
    if Path(path).is_dir():
        path = Path(path) / "results.json"
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise _no_results(path, error.strerror or "cannot be read") from None
    except ValueError as error:
        raise _no_results(path, f"no JSON, {error}") from None
    settings = record.get(SETTINGS) if isinstance(record, dict) else None
    if not isinstance(settings, dict) or not isinstance(settings.get("name"), str):
        raise _no_results(path, f"it has no {SETTINGS} with a name")
    row = row_of(record, str(path))
    for task, metrics in row.results.items():
        tasks = settings.get("tasks")
        if not isinstance(tasks, dict) or not isinstance(tasks.get(task), dict):
            raise _no_results(path, f"its {SETTINGS} do not explain {task}")
        if not isinstance(metrics, dict) or not all(map(_is_number, metrics.values())):
            raise _no_results(path, f"{task} is not of the form {{metric: number}}")
    return row


def value_text(metrics: dict[str, Any], metric: str) -> str:
    """The value with its standard error, in as many digits as are of use; empty if not there."""
    value, error = metrics.get(metric), metrics.get(f"{metric}_stderr")
    if value is None:
        return ""
    scale, unit = (100, " %") if metric in PERCENT else (1, "")
    if abs(value) >= 1e6:
        return f"{value:.4g}" + (f" ± {error:.2g}" if error is not None else "")
    digits = 4 if abs(value) < 10 and not unit else 2
    if unit and 0 < abs(value) * scale < 0.01:
        digits = 6
    text = f"{value * scale:,.{digits}f}"
    return text + (f" ± {error * scale:,.{digits}f}" if error is not None else "") + unit


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _no_results(path: str | Path, reason: str) -> ConfigError:
    remedy = "give the results.json of an evaluation"
    return ConfigError([f"{path} is no results file: {reason}; {remedy}"], "results")
