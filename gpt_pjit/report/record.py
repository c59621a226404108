"""What a run has recorded, as one JSON object: read from its workdir, which may still grow."""

import itertools
import math
import statistics
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

from gpt_pjit.config import Config, flatten
from gpt_pjit.core.errors import ConfigError, IntegrityError
from gpt_pjit.core.files import file_errors, is_remote
from gpt_pjit.core.runtime import has_begun, read_run
from gpt_pjit.core.tokens import tokens_before, walks_of
from gpt_pjit.data import BatchTexts
from gpt_pjit.evaluate import read_results
from gpt_pjit.pages import Record, is_number, read_record
from gpt_pjit.partition import explain_config
from gpt_pjit.report.lines import goodput, json_lines, read_timeline
from gpt_pjit.report.profile import profiles, read_profile

LOSS, VALIDATION = "train/loss", "validation/loss"
# A spike is a logged loss further above the median of the RECENT lines before it than so many times
# the median difference between neighbours among them, which counts as at least SMALLEST nats.
SPIKE, RECENT, FEWEST, SMALLEST = 6.0, 24, 4, 0.05
LIKE_THE_RUN = ("parameters", "layout", "mesh")  # of a plan
MOST_SPIKES, MOST_ROWS = 5, 8  # that are shown with their texts


def report_record(
    workdirs: Sequence[Path], plan: Path | None = None, evaluations: Iterable[Path] = ()
) -> Record:
    """The runs by name, and the results of evaluations; ConfigError if a workdir is no run."""
    files = [
        file
        for workdir in workdirs
        if not is_remote(workdir)
        for pattern in ("results.json", "*/results.json")
        for file in workdir.glob(pattern)
    ]
    results = [read_results(file) for file in dict.fromkeys([*files, *evaluations])]
    return {
        "at": time.time(),
        "runs": {name: run_record(path, plan) for name, path in names_of(workdirs).items()},
        "evaluations": {found.origin: found.record for found in results},
    }


def names_of(workdirs: Sequence[Path]) -> dict[str, Path]:
    """A name for each: that of its folder, or the whole path where folders have the same name."""
    unique = list(dict.fromkeys(workdirs))
    folders = [path.name for path in unique]
    return {path.name if folders.count(path.name) == 1 else str(path): path for path in unique}


def run_record(workdir: Path, plan: Path | None = None) -> Record:
    """All that is known of one run; `gaps` are sentences on what cannot be shown."""
    config, run = read_run(workdir)
    gaps: list[str] = []
    lines, starts = _lines(workdir, gaps), _starts(workdir, run)
    try:
        spans = read_timeline(workdir)
        spent = goodput(spans) if spans else None
        first = [span["at"] - span["seconds"] for span in spans[:1]]
        if not all(map(math.isfinite, [*first, *(spent or {}).values()])):
            raise ValueError
        spent = spent and {str(what): seconds for what, seconds in spent.items()}
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
        gaps.append("timeline.jsonl is damaged: where the time went is not known")
        spent, first = None, []
    first += [start["time"] for start in starts[:1]]
    walks = walks_of(config, run) if has_begun(run) else []
    for line in (*lines, *starts):
        line["tokens"] = tokens_before(walks, line["step"]) if walks else 0
        if first and is_number(line.get("time")):
            line["hours"] = (line["time"] - first[0]) / 3600
    found: Record = {
        "workdir": str(workdir),
        "config": flatten(config),
        "steps": {
            "done": max((line["step"] for line in lines if LOSS in line), default=0),
            "total": config.optim.steps,
            "finished": run.get("finished") == config.optim.steps,
        },
        "starts": starts,
        "time": spent,
        "lines": lines,
        "skipped": [line["step"] for line in lines if "train/skipped" in line],
        "samples": json_lines(workdir / "samples.jsonl")[0],
        "gaps": gaps,
    }
    found["measured"] = _measured(found)
    found["spikes"] = _spikes_with_texts(config, workdir, found)
    found["placement"] = _placement(config, found)
    found["profile"] = _profile(workdir, gaps)
    found["plan"] = _plan(found, plan) if plan else None
    return found


def _starts(workdir: Path, run: Record) -> list[Record]:
    """The starts of `run.json`, with Unix times."""
    try:
        return [
            {
                "step": int(start.get("step", 0)),
                "time": datetime.fromisoformat(start["time"]).timestamp(),
                "command": str(start["command"]),
                "commit": dict(start["git"] or {}),
                "processes": int(start["processes"]),
                "devices": [int(start["devices"][0]), str(start["devices"][1])],
                "changes": {k: (v["from"], v["to"]) for k, v in start.get("changes", {}).items()},
            }
            for start in run["starts"]
        ]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        problem = f"{workdir}/run.json is damaged: its starts are not those of a run"
        raise IntegrityError([problem], "workdir") from None


def _lines(workdir: Path, gaps: list[str]) -> list[Record]:
    found, damaged = json_lines(workdir / "metrics.jsonl")
    good = [line for line in found if isinstance(line.get("step"), int) and line["step"] >= 0]
    if damaged := damaged + len(found) - len(good):
        count = f"{damaged} lines are" if damaged > 1 else "1 line is"
        gaps.append(f"metrics.jsonl: {count} damaged and left out")
    if not good:
        gaps.append("no step has been logged yet")
    return good


def column(run: Record, metric: str, by: str = "step") -> tuple[list[float], list[float]]:
    """Where a metric was logged, and its values; NaN for what was not finite."""
    lines = [line for line in run["lines"] if metric in line and by in line]
    values = [line[metric] if is_number(line[metric]) else math.nan for line in lines]
    return [line[by] for line in lines], values


def last(run: Record, metric: str) -> float | None:
    """The last value of a metric that was finite."""
    return next((y for y in reversed(column(run, metric)[1]) if math.isfinite(y)), None)


def _measured(run: Record) -> Record:
    """What a step takes: medians over the last start, or over all if it has logged nothing."""
    newest = run["starts"][-1]["step"] if run["starts"] else 0

    def median(metric: str) -> float | None:
        points = [(x, y) for x, y in zip(*column(run, metric), strict=True) if math.isfinite(y)]
        recent = [y for x, y in points if x > newest] or [y for _, y in points]
        return statistics.median(recent) if recent else None

    speed = ("tokens_per_second", "data_wait", "mfu")
    found: Record = {name: median(f"throughput/{name}") for name in speed}
    names = dict.fromkeys(name for line in run["lines"] for name in line)
    parts = {name.removeprefix("time/"): median(name) for name in names if name.startswith("time/")}
    found["time"] = {name: value for name, value in parts.items() if value is not None}
    rate, config = found["tokens_per_second"], run["config"]
    size = config["data.batch_size"] * config["data.sequence_length"]
    return found | {"step_seconds": size / rate if rate else None}


def spikes(steps: Sequence[float], losses: Sequence[float]) -> list[int]:
    """The steps at which the loss is far above that of the lines before; of a group, the worst."""
    points = [(x, y) for x, y in zip(steps, losses, strict=True) if math.isfinite(y)]
    groups: list[list[int]] = []
    for n in range(FEWEST, len(points)):
        recent = [y for _, y in points[max(n - RECENT, 0) : n]]
        apart = statistics.median(abs(b - a) for a, b in itertools.pairwise(recent))
        if points[n][1] > statistics.median(recent) + SPIKE * max(apart, SMALLEST):
            if not groups or n - groups[-1][-1] > RECENT:
                groups.append([])
            groups[-1].append(n)
    return [int(points[max(group, key=lambda n: points[n][1])][0]) for group in groups]


def _spikes_with_texts(config: Config, workdir: Path, run: Record) -> list[Record]:
    """Each spike or skipped step; the first few with some texts of their batches."""
    at = dict(zip(*column(run, LOSS), strict=True))
    found = []
    for step in sorted({*spikes([*at], [*at.values()]), *run["skipped"]}):
        kind = "skipped" if step in run["skipped"] else "spike"
        loss = at.get(step, math.nan)
        found.append({"step": step, "kind": kind, "loss": loss if math.isfinite(loss) else None})
    for one in found[:MOST_SPIKES]:
        try:
            batch = BatchTexts(config, workdir, one["step"] - 1)  # which counts from 0
            rows = range(min(batch.rows, MOST_ROWS))
            texts = [[part._asdict() for part in batch.example(row).parts] for row in rows]
            one |= {"rows": batch.rows, "texts": texts}
        except (ConfigError, OSError) as error:
            run["gaps"].append(f"the data of step {one['step']:,} cannot be opened: {error}")
    return found


def _placement(config: Config, run: Record) -> Record | None:
    """The totals of `gpt_pjit partition explain`, on the devices of the last start."""
    if not run["starts"]:
        return None
    try:
        found = explain_config(config, run["starts"][-1]["devices"][0])
    except ConfigError as error:
        run["gaps"].append(f"the placement cannot be explained: {error}")
        return None
    shapes = [parameter["shape"] for parameter in found["parameters"].values()]
    kept = ("layout", "mesh", "bytes_a_device", "bytes_moved_a_step")
    return {name: found[name] for name in kept} | {"parameters": sum(map(math.prod, shapes))}


def _profile(workdir: Path, gaps: list[str]) -> Record | None:
    """The trace of the latest steps, with the first of them."""
    for first, path in [*profiles(workdir).items()][-1:]:
        try:
            return {"first": first} | read_profile(path)
        except ConfigError as error:
            gaps.append(str(error))
    return None


def _plan(run: Record, file: Path) -> Record:
    """What a run is compared with, and in what the plan is another's."""
    with file_errors(f"{file} cannot be read", "--plan"):
        plan = read_record(file, ("topology", "cost", *LIKE_THE_RUN))
    placed = run["placement"]
    if other := [name for name in LIKE_THE_RUN if placed and plan[name] != placed[name]]:
        run["gaps"].append(f"{file} is the plan of a run with other {', '.join(other)}")
    return {"file": str(file), "topology": plan["topology"], "cost": plan["cost"]}
