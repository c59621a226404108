"""Results as JSON, and as tables beside other results and published ones."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt_pjit.errors import ConfigError
from gpt_pjit.evaluate.choices import ITEMS
from gpt_pjit.evaluate.losses import warning
from gpt_pjit.evaluate.published import PUBLISHED
from gpt_pjit.evaluate.tasks import LENGTHS
from gpt_pjit.evaluate.texts import Result

SETTINGS = "settings"  # the one key of a results file that is no task
ALL_PUBLISHED = "published"  # as a --compare
PERCENT = ("acc", "acc_norm", "share_above_20", "loss_share_above_20")


@dataclass(frozen=True)
class Row:
    """One model's results, `{task: {metric: value, metric_stderr: value}}`, and where from.

    `details` are those of its `Result`s, by task; of published ones there are none.
    """

    name: str
    results: dict[str, dict[str, Any]]
    source: str
    published: bool = False
    details: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def results_record(results: dict[str, Result], settings: dict[str, Any]) -> dict[str, Any]:
    """What `--json` prints: metrics by task; `settings` holds what explains them, by task too."""
    metrics: dict[str, Any] = {task: result.metrics for task, result in results.items()}
    details = {task: result.details for task, result in results.items()}
    return metrics | {SETTINGS: settings | {"tasks": details}}


def comparison_rows(names: Iterable[str], tasks: Iterable[str]) -> list[Row]:
    """Rows of results files and, for `published`, of the models built in that have these tasks."""
    rows, problems = [], []
    wanted = set(tasks)
    for name in names:
        if name == ALL_PUBLISHED:
            found = [p for p in PUBLISHED if wanted & set(p.results)]
            rows += [Row(p.name, p.results, p.source, published=True) for p in found]
            continue
        try:
            record = json.loads(Path(name).read_text(encoding="utf-8"))
            settings = record.pop(SETTINGS)
            rows.append(Row(settings["name"], record, name, details=settings["tasks"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"{name} is no results file ({type(error).__name__}: {error}); give the"
            problems.append(f"{problem} results.json of an evaluation, or {ALL_PUBLISHED}")
    if problems:
        raise ConfigError(problems, "--compare")
    return rows


def tables(record: dict[str, Any], others: Sequence[Row]) -> list[Table]:
    """Side by side first, then every metric of this evaluation, positions and worst tokens."""
    settings = record[SETTINGS]
    mine = {task: metrics for task, metrics in record.items() if task != SETTINGS}
    row = Row(settings["name"], mine, settings["checkpoint"])
    found = [_comparison([row, *others]), _all_metrics(mine)]
    for task, details in settings["tasks"].items():
        if pieces := details.get("by_position"):
            rows = [(p["length"], f"{p['from']}-{p['to']}", f"{p['loss']:.4f}") for p in pieces]
            header = ("context", "positions", "nats a token")
            found.append(Table(f"{task}: loss by position", header, rows))
        if worst := details.get("worst_tokens"):
            rows = [(f"{w['nll']:.2f}", repr(w["text"]), repr(w["before"])) for w in worst]
            found.append(Table(f"{task}: worst tokens", ("nats", "token", "after"), rows))
    return found


def notes(record: dict[str, Any], others: Sequence[Row]) -> list[str]:
    """Warnings first, then how it was computed, then where other rows are from."""
    settings = record[SETTINGS]
    lines = []
    for task, details in settings["tasks"].items():
        if line := warning(record[task]):
            lines.append(f"WARNING, {task}: {line}")
        if details.get("text_changed_by_tokenizer"):
            lines.append(f"{task}: the tokenizer's normaliser changes the text before it is scored")
        window = [f"{key} {details[key]:,}" for key in ("window", "stride") if key in details]
        counts = ("items", "documents", "bytes", "tokens")
        size = [f"{details[count]:,} {count}" for count in counts if count in details]
        lines.append(f"{task}: {', '.join([*size, *window])}")
    lines += [line for row in others for line in _unlike(settings["tasks"], row)]
    lines.append(f"{settings['name']}: step {settings['step']:,} of {settings['checkpoint']}")
    sources = {row.source: [r.name for r in others if r.source == row.source] for row in others}
    lines += [f"{', '.join(names)}: {source}" for source, names in sources.items()]
    return lines


def markdown(record: dict[str, Any], others: Sequence[Row]) -> str:
    parts = [f"# Evaluation of {record[SETTINGS]['name']}"]
    for table in tables(record, others):
        lines = [table.header, ["---"] * len(table.header), *table.rows]
        cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
        body = "\n".join(f"| {' | '.join(line)} |" for line in cells)
        parts.append(f"## {table.title}\n\n{body}")
    parts.append("\n".join(f"- {note}" for note in notes(record, others)))
    return "\n\n".join(parts) + "\n"


def _unlike(mine: dict[str, dict[str, Any]], other: Row) -> Iterator[str]:
    """What keeps the figures of `other` from being compared with mine, a line for each task."""
    for task, here in mine.items():
        there = other.details.get(task, {})
        keys = _differing(here, there, ("window", "stride", "training_context"))
        found = [f"{key} {there[key]:,}, here {here[key]:,}" for key in keys]
        if _differing(here.get("data", {}), there.get("data", {}), ("sha256", "hub")):
            found.append("other data")
        if found:
            yield f"WARNING, {task}: {other.name} is not to be compared: {'; '.join(found)}"


def _differing(one: dict[str, Any], other: dict[str, Any], keys: Iterable[str]) -> list[str]:
    """Of `keys`, those that both have with different values."""
    return [key for key in keys if key in one and key in other and one[key] != other[key]]


def _headline(task: str) -> tuple[str, ...]:
    if task == "lambada":
        return ("acc", "perplexity")
    if task in ITEMS:
        return ("acc", "acc_norm")
    if task.startswith(LENGTHS):
        return ("loss_1x", "loss_2x", "loss_4x")
    return ("bits_per_byte",)


def _comparison(rows: Sequence[Row]) -> Table:
    columns = [(task, metric) for task in rows[0].results for metric in _headline(task)]
    lines = []
    for row in rows:
        cells = [_value(row.results.get(task, {}), metric) for task, metric in columns]
        lines.append([f"{row.name} (published)" if row.published else row.name, *cells])
    header = ["model", *(f"{task} {metric}" for task, metric in columns)]
    return Table("Results", header, lines)


def _all_metrics(results: dict[str, dict[str, Any]]) -> Table:
    lines = [
        (task, metric, _value(metrics, metric))
        for task, metrics in results.items()
        for metric in metrics
        if not metric.endswith("_stderr")
    ]
    return Table("Every metric", ("task", "metric", "value"), lines)


def _value(metrics: dict[str, Any], metric: str) -> str:
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
