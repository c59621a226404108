"""Results of a model: their file, and tables of them beside other results and published ones."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.files import read_json
from gpt_pjit.evaluate.losses import DISTRIBUTION, SHARES, warning
from gpt_pjit.pages import Block, Cell, Note, Table, markdown

SETTINGS = "settings"  # the one key of a results file that is not a task
COUNTS = ("items", "documents", "bytes", "tokens")  # in the details of a task, as are the next
CONDITIONS = ("window", "stride", "training_context", "num_fewshot")
ALL_PUBLISHED = "published"  # as a --compare
PERCENT = ("acc", "acc_norm", "exact_match", *SHARES)
LOSSES = ("loss_1x", "loss_2x", "loss_4x")


@dataclass(frozen=True)
class ModelResults:
    """One model's results, `{task: {metric: value, metric_stderr: value}}`.

    `origin` is their file, or the citation of published ones, which have no `settings`.
    """

    name: str
    tasks: dict[str, dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    origin: str = ""

    @property
    def record(self) -> dict[str, Any]:
        """What `--json` prints: metrics by task, and the `settings` that explain them."""
        return self.tasks | {SETTINGS: self.settings}

    def details(self, task: str) -> dict[str, Any]:
        """What explains the figures of one task."""
        return self.settings.get("tasks", {}).get(task, {})


def from_record(record: dict[str, Any], origin: str = "") -> ModelResults:
    settings = record[SETTINGS]
    tasks = {task: metrics for task, metrics in record.items() if task != SETTINGS}
    return ModelResults(settings["name"], tasks, settings, origin)


def read_results(path: str | Path) -> ModelResults:
    """The results in a results.json, or in the folder that holds it; ConfigError if damaged."""
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    record = read_json(path)
    try:
        found = from_record(record, str(path))
        report(found, [found])  # what cannot be shown is not one of ours
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        raise ConfigError([f"{path} is not a results file of evaluate"], "results") from None
    return found


def comparisons(names: Iterable[str], tasks: Iterable[str]) -> list[ModelResults]:
    """What `--compare` names: results files, and `published`: built-in models with these tasks."""
    found: list[ModelResults] = []
    for name in names:
        if name == ALL_PUBLISHED:
            found += [model for model in PUBLISHED if set(tasks) & set(model.tasks)]
        else:
            found.append(read_results(Path(name).expanduser()))
    return found


def report(mine: ModelResults, others: Sequence[ModelResults]) -> list[Block]:
    """Beside others first, then every metric, positions and worst tokens; at last, notes."""
    blocks: list[Block] = [_comparison([mine, *others])] if others else []
    blocks.append(_all_metrics("Every metric", mine.tasks))
    for task in mine.tasks:
        details = mine.details(task)
        if parts := details.get("by_position"):
            rows = [(p["length"], f"{p['from']}-{p['to']}", value_text(p, "loss")) for p in parts]
            header = ("context", "positions", "nats per token")
            blocks.append(Table(f"{task}: loss by position", header, rows))
        if worst := details.get("worst_tokens"):
            cells = [(f"{w['nll']:.2f}", _code(w["text"]), _code(w["before"])) for w in worst]
            blocks.append(Table(f"{task}: worst tokens", ("nats", "token", "after"), cells))
    return blocks + list(_notes(mine, others))


def _code(text: str) -> Cell:
    return Cell(repr(text), style="code")


def results_table(results: ModelResults) -> str:
    """Markdown: every metric but the distribution of token losses, and how each task was scored."""
    short = {
        task: {metric: value for metric, value in metrics.items() if metric not in DISTRIBUTION}
        for task, metrics in results.tasks.items()
    }
    notes = [_conditions(task, results.details(task)) for task in short]
    notes.append(f"scored in {results.settings['dtype']}, by gpt_pjit")
    return markdown([_all_metrics("", short), *map(Note, notes)])


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


def _notes(mine: ModelResults, others: Sequence[ModelResults]) -> Iterator[Note]:
    """Warnings and conditions by task, then the checkpoint, then the origin of other results."""
    for task, metrics in mine.tasks.items():
        if line := warning(metrics):
            yield Note(f"WARNING, {task}: {line}", "bad")
        if mine.details(task).get("text_changed_by_tokenizer"):
            yield Note(f"{task}: the tokenizer's normaliser changes the text before it is scored")
        yield Note(_conditions(task, mine.details(task)))
    for other in others:
        yield from _differences(mine, other)
    step = f"step {mine.settings['step']:,} of {mine.settings['checkpoint']}"
    yield Note(f"{mine.name}: {step}, computed in {mine.settings['dtype']}")
    for origin in dict.fromkeys(other.origin for other in others):
        yield Note(f"{', '.join(o.name for o in others if o.origin == origin)}: {origin}")


def _conditions(task: str, details: dict[str, Any]) -> str:
    counts = {name: details[name] for name in COUNTS if name in details}
    parts = [f"{n:,} {name if n != 1 else name[:-1]}" for name, n in counts.items()]
    parts += [f"{key} {details[key]:,}" for key in CONDITIONS if key in details]
    return f"{task}: {', '.join(parts)}"


def _differences(mine: ModelResults, other: ModelResults) -> Iterator[Note]:
    """For each task, what keeps the figures of `other` from being compared with mine."""
    for task in mine.tasks:
        here, there = mine.details(task), other.details(task)
        keys = _differing(here, there, CONDITIONS)
        found = [f"{key} {there[key]:,}, here {here[key]:,}" for key in keys]
        if _differing(here.get("data", {}), there.get("data", {}), ("sha256", "requests")):
            found.append("other data")
        if found:
            name = f"{other.name} of {other.origin}"
            text = f"WARNING, {task}: {name} cannot be compared: {'; '.join(found)}"
            yield Note(text, "bad")


def _differing(one: dict[str, Any], other: dict[str, Any], keys: Iterable[str]) -> list[str]:
    """Those of `keys` that both have with different values."""
    return [key for key in keys if key in one and key in other and one[key] != other[key]]


def headline(metrics: dict[str, Any]) -> list[str]:
    """The metrics of a task that stand beside those of other models."""
    for known in (("bits_per_byte",), LOSSES):
        if set(known) <= set(metrics):
            return list(known)
    return [m for m in metrics if not m.endswith("_stderr") and m not in DISTRIBUTION]


def _comparison(models: Sequence[ModelResults]) -> Table:
    """A column for each model: names of tasks may be long, and there are few models."""
    rows = [
        (task, metric, *(value_text(model.tasks.get(task, {}), metric) for model in models))
        for task, metrics in models[0].tasks.items()
        for metric in headline(metrics)
    ]
    names = [model.name if model.settings else f"{model.name} (published)" for model in models]
    return Table("Results", ("task", "metric", *names), rows)


def _all_metrics(title: str, tasks: dict[str, dict[str, Any]]) -> Table:
    rows = [
        (task, metric, value_text(metrics, metric))
        for task, metrics in tasks.items()
        for metric in metrics
        if not metric.endswith("_stderr")
    ]
    return Table(title, ("task", "metric", "value"), rows)


# Results of other models as their citations state them; what one does not state is absent. None
# were computed here. Accuracies are fractions.
RUN_LOG = (
    "training log of the 580M run, github.com/fattorib/ZeRO-transformer logs/580.md at commit "
    "8c18a534 (HellaSwag at 333ee149); GPT-2's LAMBADA and PIQA there are from "
    "github.com/EleutherAI/gpt-neo"
)
GPT2_PAPER = (
    "Radford et al. 2019, Language Models are Unsupervised Multitask Learners, table 3: its own "
    "detokenisers and its own form of LAMBADA, so not what lm-eval computes"
)
COLUMNS = (
    ("wikitext2", "bits_per_byte"),
    ("enwik8", "bits_per_byte"),
    ("text8", "bits_per_byte"),
    ("lambada_openai", "acc"),
    ("lambada_openai", "perplexity"),
    ("piqa", "acc"),
    ("hellaswag", "acc"),
)


def _published(name: str, citation: str, *values: float | None) -> ModelResults:
    tasks: dict[str, dict[str, float]] = {}
    for (task, metric), value in zip(COLUMNS, values, strict=True):
        if value is not None:
            tasks.setdefault(task, {})[metric] = value
    return ModelResults(name, tasks, origin=citation)


PUBLISHED = (
    _published("GPT2-Medium", RUN_LOG, 1.0003, None, 1.1024, 0.430, 18.26, 0.676, 0.3331),
    _published("GPT-580M", RUN_LOG, 0.9547, 1.089, 1.133, 0.464, 14.08, 0.668, 0.3333),
    _published("GPT2-Large", RUN_LOG, 0.9578, None, 1.0543, 0.476, 12.97, 0.703, 0.3640),
    _published("GPT2-Medium (paper)", GPT2_PAPER, None, 1.01, 1.06, 0.5548, 15.60, None, None),
    _published("GPT2-Large (paper)", GPT2_PAPER, None, 0.97, 1.02, 0.6012, 10.87, None, None),
)
