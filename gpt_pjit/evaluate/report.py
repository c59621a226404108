"""Results as tables, beside other results and published ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.evaluate.choices import ITEMS
from gpt_pjit.evaluate.losses import DISTRIBUTION, warning
from gpt_pjit.evaluate.published import PUBLISHED
from gpt_pjit.evaluate.results import Row, read_results, value_text
from gpt_pjit.evaluate.tasks import LENGTHS

ALL_PUBLISHED = "published"  # as a --compare


@dataclass(frozen=True)
class Table:
    """Cells of the columns `code` are pieces of other texts, to be shown as they are."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    code: Sequence[int] = ()


def comparison_rows(names: Iterable[str], tasks: Iterable[str]) -> list[Row]:
    """Rows of results files and, for `published`, of the models built in that have these tasks."""
    rows: list[Row] = []
    problems: list[Problem | str] = []
    wanted = set(tasks)
    for name in names:
        if name == ALL_PUBLISHED:
            found = [p for p in PUBLISHED if wanted & set(p.results)]
            if not found:
                have = ", ".join(sorted({task for p in PUBLISHED for task in p.results}))
                problems.append(f"none of the published models has these tasks; they have {have}")
            rows += [Row(p.name, p.results, p.source, published=True) for p in found]
            continue
        try:
            rows.append(read_results(name))
        except ConfigError as error:
            problems += [f"{p}, or compare with `{ALL_PUBLISHED}`" for p in error.problems]
    if problems:
        raise ConfigError(problems, "--compare")
    return rows


def tables(mine: Row, others: Sequence[Row]) -> list[Table]:
    """Beside others first, then every metric of this evaluation, positions and worst tokens."""
    found = [_comparison([mine, *others])] if others else []
    found.append(_all_metrics(mine))
    for task in mine.results:
        details = mine.details(task)
        if pieces := details.get("by_position"):
            rows = [(p["length"], f"{p['from']}-{p['to']}", value_text(p, "loss")) for p in pieces]
            header = ("context", "positions", "nats a token")
            found.append(Table(f"{task}: loss by position", header, rows))
        if worst := details.get("worst_tokens"):
            rows = [(f"{w['nll']:.2f}", repr(w["text"]), repr(w["before"])) for w in worst]
            found.append(
                Table(f"{task}: worst tokens", ("nats", "token", "after"), rows, code=(1, 2))
            )
    return found


def notes(mine: Row, others: Sequence[Row]) -> list[str]:
    """Warnings first, then how it was computed, then where other rows are from."""
    lines = []
    for task, metrics in mine.results.items():
        if line := warning(metrics):
            lines.append(f"WARNING, {task}: {line}")
        if mine.details(task).get("text_changed_by_tokenizer"):
            lines.append(f"{task}: the tokenizer's normaliser changes the text before it is scored")
        lines.append(_how(task, mine.details(task)))
    lines += [line for row in others for line in _unlike(mine, row)]
    settings = mine.settings
    step = f"step {settings['step']:,} of {settings['checkpoint']}"
    lines.append(f"{mine.name}: {step}, computed in {settings['dtype']}")
    sources = {row.source: [r.name for r in others if r.source == row.source] for row in others}
    lines += [f"{', '.join(names)}: {source}" for source, names in sources.items()]
    return lines


def markdown(mine: Row, others: Sequence[Row]) -> str:
    parts = [f"# Evaluation of {mine.name}"]
    parts += [f"## {table.title}\n\n{markdown_table(table)}" for table in tables(mine, others)]
    parts.append("\n".join(f"- {note}" for note in notes(mine, others)))
    return "\n\n".join(parts) + "\n"


def results_table(row: Row) -> str:
    """Markdown: every metric but the distribution of token losses, and how each task was scored."""
    short = {
        task: {metric: value for metric, value in metrics.items() if metric not in DISTRIBUTION}
        for task, metrics in row.results.items()
    }
    lines = [_how(task, row.details(task)) for task in short]
    lines.append(f"scored in {row.settings['dtype']}, by gpt_pjit")
    table = markdown_table(_all_metrics(Row(row.name, short, row.source)))
    return "\n".join([table, "", *(f"- {line}" for line in lines)])


def markdown_table(table: Table) -> str:
    rows = [
        [_code(cell) if column in table.code else cell for column, cell in enumerate(row)]
        for row in table.rows
    ]
    lines = [table.header, ["---"] * len(table.header), *rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _code(text: str) -> str:
    """`text` between more backticks than it has in a row."""
    fence = "`"
    while fence in text:
        fence += "`"
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def _how(task: str, details: dict[str, Any]) -> str:
    window = [f"{key} {details[key]:,}" for key in ("window", "stride") if key in details]
    counts = {name: details.get(name) for name in ("items", "documents", "bytes", "tokens")}
    size = [f"{n:,} {name if n != 1 else name[:-1]}" for name, n in counts.items() if n is not None]
    return f"{task}: {', '.join([*size, *window])}"


def _unlike(mine: Row, other: Row) -> Iterator[str]:
    """What keeps the figures of `other` from being compared with mine, a line for each task."""
    for task in mine.results:
        here, there = mine.details(task), other.details(task)
        keys = _differing(here, there, ("window", "stride", "training_context"))
        found = [f"{key} {there[key]:,}, here {here[key]:,}" for key in keys]
        if _differing(here.get("data", {}), there.get("data", {}), ("sha256", "hub")):
            found.append("other data")
        if found:
            name = f"{other.name} of {other.source}"
            yield f"WARNING, {task}: {name} is not to be compared: {'; '.join(found)}"


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
    """A model a column: names of tasks may be long, and there are few models."""
    lines = [
        [task, metric, *(value_text(row.results.get(task, {}), metric) for row in rows)]
        for task in rows[0].results
        for metric in _headline(task)
    ]
    names = [f"{row.name} (published)" if row.published else row.name for row in rows]
    return Table("Results", ["task", "metric", *names], lines)


def _all_metrics(row: Row) -> Table:
    lines = [
        (task, metric, value_text(metrics, metric))
        for task, metrics in row.results.items()
        for metric in metrics
        if not metric.endswith("_stderr")
    ]
    return Table("Every metric", ("task", "metric", "value"), lines)
