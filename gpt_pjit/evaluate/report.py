"""Results as tables, beside other results and published ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.evaluate.losses import DISTRIBUTION, SHARES, warning
from gpt_pjit.evaluate.published import PUBLISHED
from gpt_pjit.evaluate.results import CONDITIONS, COUNTS, ModelResults, read_results

ALL_PUBLISHED = "published"  # as a --compare
PERCENT = ("acc", "acc_norm", "exact_match", *SHARES)
LOSSES = ("loss_1x", "loss_2x", "loss_4x")


@dataclass(frozen=True)
class Table:
    """Cells of the columns `code` are pieces of other texts, shown verbatim."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    code: Sequence[int] = ()


def comparisons(names: Iterable[str], tasks: Iterable[str]) -> list[ModelResults]:
    """What `--compare` names: results files, and `published`: built-in models with these tasks."""
    found: list[ModelResults] = []
    problems: list[Problem | str] = []
    wanted = set(tasks)
    for name in names:
        if name == ALL_PUBLISHED:
            published = [p for p in PUBLISHED if wanted & set(p.tasks)]
            if not published:
                have = ", ".join(sorted({task for p in PUBLISHED for task in p.tasks}))
                problems.append(f"the published models have none of these tasks, only {have}")
            found += published
            continue
        try:
            found.append(read_results(name))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems, "--compare")
    return found


def tables(mine: ModelResults, others: Sequence[ModelResults]) -> list[Table]:
    """Beside others first, then every metric of this evaluation, positions and worst tokens."""
    found = [_comparison([mine, *others])] if others else []
    found.append(_all_metrics(mine.tasks))
    for task in mine.tasks:
        details = mine.details(task)
        if pieces := details.get("by_position"):
            rows = [(p["length"], f"{p['from']}-{p['to']}", value_text(p, "loss")) for p in pieces]
            header = ("context", "positions", "nats per token")
            found.append(Table(f"{task}: loss by position", header, rows))
        if worst := details.get("worst_tokens"):
            rows = [(f"{w['nll']:.2f}", repr(w["text"]), repr(w["before"])) for w in worst]
            header = ("nats", "token", "after")
            found.append(Table(f"{task}: worst tokens", header, rows, code=(1, 2)))
    return found


def notes(mine: ModelResults, others: Sequence[ModelResults]) -> list[str]:
    """Warnings and conditions by task, then the checkpoint, then the origin of other results."""
    lines = []
    for task, metrics in mine.tasks.items():
        if line := warning(metrics):
            lines.append(f"WARNING, {task}: {line}")
        if mine.details(task).get("text_changed_by_tokenizer"):
            lines.append(f"{task}: the tokenizer's normaliser changes the text before it is scored")
        lines.append(_conditions(task, mine.details(task)))
    lines += [line for other in others for line in _differences(mine, other)]
    settings = mine.settings
    step = f"step {settings['step']:,} of {settings['checkpoint']}"
    lines.append(f"{mine.name}: {step}, computed in {settings['dtype']}")
    origins = dict.fromkeys(other.origin for other in others)
    for origin in origins:
        lines.append(f"{', '.join(o.name for o in others if o.origin == origin)}: {origin}")
    return lines


def markdown(mine: ModelResults, others: Sequence[ModelResults]) -> str:
    parts = [f"# Evaluation of {mine.name}"]
    parts += [f"## {table.title}\n\n{markdown_table(table)}" for table in tables(mine, others)]
    parts.append("\n".join(f"- {note}" for note in notes(mine, others)))
    return "\n\n".join(parts) + "\n"


def results_table(results: ModelResults) -> str:
    """Markdown: every metric but the distribution of token losses, and how each task was scored."""
    short = {
        task: {metric: value for metric, value in metrics.items() if metric not in DISTRIBUTION}
        for task, metrics in results.tasks.items()
    }
    lines = [_conditions(task, results.details(task)) for task in short]
    lines.append(f"scored in {results.settings['dtype']}, by gpt_pjit")
    return "\n".join([markdown_table(_all_metrics(short)), "", *(f"- {line}" for line in lines)])


def markdown_table(table: Table) -> str:
    rows = [
        [_code(cell) if column in table.code else cell for column, cell in enumerate(row)]
        for row in table.rows
    ]
    lines = [table.header, ["---"] * len(table.header), *rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def value_text(metrics: dict[str, Any], metric: str) -> str:
    """The value with its standard error, in as many digits as are of use; empty if absent."""
    value, error = metrics.get(metric), metrics.get(f"{metric}_stderr")
    if value is None:
        return ""
    scale, unit = (100, " %") if metric.partition(",")[0] in PERCENT else (1, "")
    if abs(value) >= 1e6:
        return f"{value:.4g}" + (f" ± {error:.2g}" if error is not None else "")
    digits = 4 if abs(value) < 10 and not unit else 2
    if unit and 0 < abs(value) * scale < 0.01:
        digits = 6
    text = f"{value * scale:,.{digits}f}"
    return text + (f" ± {error * scale:,.{digits}f}" if error is not None else "") + unit


def _code(text: str) -> str:
    """`text` between backticks, more of them than it has in a row."""
    fence = "`"
    while fence in text:
        fence += "`"
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def _conditions(task: str, details: dict[str, Any]) -> str:
    counts = {name: details[name] for name in COUNTS if name in details}
    parts = [f"{n:,} {name if n != 1 else name[:-1]}" for name, n in counts.items()]
    parts += [f"{key} {details[key]:,}" for key in CONDITIONS if key in details]
    return f"{task}: {', '.join(parts)}"


def _differences(mine: ModelResults, other: ModelResults) -> Iterator[str]:
    """For each task, what keeps the figures of `other` from being compared with mine."""
    for task in mine.tasks:
        here, there = mine.details(task), other.details(task)
        keys = _differing(here, there, CONDITIONS)
        found = [f"{key} {there[key]:,}, here {here[key]:,}" for key in keys]
        if _differing(here.get("data", {}), there.get("data", {}), ("sha256", "requests")):
            found.append("other data")
        if found:
            name = f"{other.name} of {other.origin}"
            yield f"WARNING, {task}: {name} cannot be compared: {'; '.join(found)}"


def _differing(one: dict[str, Any], other: dict[str, Any], keys: Iterable[str]) -> list[str]:
    """Those of `keys` that both have with different values."""
    return [key for key in keys if key in one and key in other and one[key] != other[key]]


def _headline(metrics: dict[str, Any]) -> list[str]:
    """The metrics of a task that stand beside those of other models."""
    for known in (("bits_per_byte",), LOSSES):
        if set(known) <= set(metrics):
            return list(known)
    return [m for m in metrics if not m.endswith("_stderr") and m not in DISTRIBUTION]


def _comparison(models: Sequence[ModelResults]) -> Table:
    """A column for each model: names of tasks may be long, and there are few models."""
    lines = [
        [task, metric, *(value_text(model.tasks.get(task, {}), metric) for model in models)]
        for task, metrics in models[0].tasks.items()
        for metric in _headline(metrics)
    ]
    names = [f"{model.name} (published)" if model.published else model.name for model in models]
    return Table("Results", ["task", "metric", *names], lines)


def _all_metrics(tasks: dict[str, dict[str, Any]]) -> Table:
    lines = [
        (task, metric, value_text(metrics, metric))
        for task, metrics in tasks.items()
        for metric in metrics
        if not metric.endswith("_stderr")
    ]
    return Table("Every metric", ("task", "metric", "value"), lines)
