"""Tasks and groups of lm-eval: its prompts, metrics and standard errors, our scorer."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import random
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.evaluate.batches import Request
from gpt_pjit.evaluate.losses import Metrics, loss_metrics, worst_tokens
from gpt_pjit.evaluate.results import Job, Result
from gpt_pjit.evaluate.scorer import Scored, Scorer

SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
SYNONYMS = ({"train"}, {"validation", "valid", "val", "dev"}, {"test"})  # in names of files
SEED, NUMPY_SEED, FEWSHOT_SEED = 0, 1234, 1234  # lm-eval's own
BOOTSTRAPS = 1_000  # lm-eval draws 100,000: minutes, for a third digit of a standard error


@dataclass(frozen=True)
class Options:
    """What `--data_dir`, `--num_fewshot` and `--limit` say of tasks."""

    data_dir: Path | None = None
    num_fewshot: int | None = None
    limit: float | None = None


def require_lm_eval(names: Sequence[str]) -> None:
    if find_spec("lm_eval") is None:
        needs = f"{', '.join(names)} {'need' if len(names) > 1 else 'needs'} lm-eval"
        raise ConfigError([f"{needs}: pip install 'gpt_pjit[eval]'"], "--tasks")


class Harness:
    """lm-eval's tasks; `folder`, a temporary one, is wanted while they are loaded."""

    def __init__(self, options: Options, folder: Path):
        os.environ.setdefault("TQDM_DISABLE", "1")  # our own bar shows the progress
        os.environ["DISABLE_MULTIPROC"] = "1"  # forks beside JAX's threads may never end
        from lm_eval.tasks import TaskManager

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self._options = options
        self._manager = TaskManager()
        if options.data_dir:
            self._use_local_data(options.data_dir, folder)

    def load(self, name: str) -> Callable[[Scorer, int], Job]:
        """The task, group or pattern `name` with its data, to be scored by a scorer."""
        matches = self._manager.match_tasks([name])
        if not matches:
            problem = f"{name} is neither a text nor a task of lm-eval; `lm-eval ls tasks` has all"
            raise ConfigError([problem])
        random.seed(SEED)
        np.random.seed(NUMPY_SEED)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                loaded: dict[str, Any] = self._manager.load(matches)  # its `TaskDict`
        except Exception as error:  # of several libraries: no network, no such file, ...
            raise ConfigError([f"{name} cannot be loaded: {_first_line(error)}"]) from None
        for task in loaded["tasks"].values():
            _check_kind(task)
            _set_fewshot(task, self._options.num_fewshot)
        return lambda scorer, _: _prepare_job(scorer, name, loaded, self._options.limit)

    def _use_local_data(self, data_dir: Path, folder: Path) -> None:
        """A task with a folder of its name in `data_dir` reads that, in whatever group it is: a
        definition that includes lm-eval's takes its place.
        """
        for local in sorted(path for path in data_dir.iterdir() if path.is_dir()):
            entry = self._manager.task_index.get(local.name)
            if not entry or not entry.cfg or not entry.cfg.get("dataset_path"):
                continue
            splits = {key: entry.cfg.get(key) for key in SPLITS}
            files = _write_splits(local, {split for split in splits.values() if split}, folder)
            definition = {
                "include": str(entry.yaml_path),
                "task": local.name,
                "dataset_path": "json",
                "dataset_name": None,
                "dataset_kwargs": {
                    "data_files": files,
                    "cache_dir": str(folder / "cache"),
                    "keep_in_memory": True,
                },
                **{key: split if split in files else None for key, split in splits.items()},
            }
            entry.yaml_path = folder / f"{local.name}.yaml"  # YAML holds JSON
            entry.yaml_path.write_text(json.dumps(definition, ensure_ascii=False))


def _write_splits(local: Path, splits: set[str], folder: Path) -> dict[str, str]:
    """The records of each split that `local` has a file for, as files of JSON lines in `folder`.

    A file belongs to a split by a word of its name: `validation.jsonl`, `hellaswag_val.jsonl`.
    """
    written: dict[str, str] = {}
    for split in sorted(splits):
        alike = next((words for words in SYNONYMS if split in words), {split})
        files = [p for p in sorted(local.glob("*.jsonl")) if alike & _words(p)]
        files = [p for p in files if split in _words(p)] or files
        if len(files) > 1:
            names = " and ".join(path.name for path in files)
            raise ConfigError([f"{local}: {names} are both of the split {split}; keep one"])
        if files:
            path = folder / f"{local.name}.{split}.jsonl"
            path.write_text("".join(json.dumps(record) + "\n" for record in _records(files[0])))
            written[split] = str(path)
    if not written:
        raise ConfigError([f"{local} has no .jsonl file named after {' or '.join(sorted(splits))}"])
    return written


def _words(path: Path) -> set[str]:
    return set(re.split(r"[^a-z]+", path.stem.lower()))


def _records(path: Path) -> list[dict[str, Any]]:
    """A record for each line; FILE-labels.lst beside FILE.jsonl has their labels, as PIQA's."""
    records = []
    for number, line in enumerate(path.read_bytes().rstrip().split(b"\n"), 1):
        try:
            records.append(dict(json.loads(line)))
        except (TypeError, ValueError, RecursionError) as error:
            problem = f"{path}, line {number}, is not a JSON record: {_first_line(error)}"
            raise ConfigError([problem]) from None
    labels = path.with_name(f"{path.stem}-labels.lst")
    if labels.exists():
        values = labels.read_text().split()
        if len(values) != len(records):
            problem = f"{labels} has {len(values)} labels for {len(records)} records"
            raise ConfigError([problem])
        records = [r | {"label": int(v)} for r, v in zip(records, values, strict=True)]
    return records


def _check_kind(task: Any) -> None:
    if getattr(task, "MULTIMODAL", False):
        raise ConfigError([f"{task.task_name} needs a model of images or sound"])
    if getattr(task, "UNSAFE_CODE", False):
        problem = f"{task.task_name} runs code that the model writes; only lm-eval's own command"
        raise ConfigError([f"{problem} does, python -m gpt_pjit.evaluate.lm_eval"])


def _set_fewshot(task: Any, wanted: int | None) -> None:
    """By lm-eval's rule: a task that sets 0 examples itself keeps them."""
    own = task.get_config("num_fewshot")
    if wanted is not None and own != 0:
        task.set_config(key="num_fewshot", value=wanted)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)


def _prepare_job(scorer: Scorer, name: str, loaded: dict[str, Any], limit: float | None) -> Job:
    """Builds and checks all requests; the job builds them again, from the same seeds."""
    import lm_eval

    from gpt_pjit.evaluate.model import ScorerLM

    model = ScorerLM(scorer)
    model.label = name
    digests = {}
    for task_name, task in loaded["tasks"].items():
        instances = _instances(task, limit)
        model.check(instances, task_name)
        arguments = [[instance.request_type, instance.args] for instance in instances]
        digests[task_name] = hashlib.sha256(json.dumps(arguments, default=str).encode()).hexdigest()
    _check_same_everywhere(name, digests)

    def compute() -> dict[str, Result]:
        # The distribution of losses is of use where each token scored is right.
        kinds = {task_name: task.OUTPUT_TYPE for task_name, task in loaded["tasks"].items()}
        model.losses = {n: [] for n, kind in kinds.items() if str(kind).startswith("loglikelihood")}
        for task in loaded["tasks"].values():
            task.set_fewshot_seed(FEWSHOT_SEED)
        with contextlib.redirect_stdout(sys.stderr):
            found = lm_eval.evaluate(
                model, loaded, limit=limit, bootstrap_iters=BOOTSTRAPS, log_samples=False
            )
        metrics = {task_name: _metrics(of) for task_name, of in found["results"].items()}
        # A group without figures of its own has no metrics.
        results = {
            n: Result(m, _details(n, found, scorer, digests)) for n, m in metrics.items() if m
        }
        for task_name, items in model.losses.items():
            _add_distribution(results[task_name], items, scorer)
        return results

    return compute


def _instances(task: Any, limit: float | None) -> list[Any]:
    """The task's requests; ConfigError where its data lack what the prompts are made of."""
    from lm_eval.evaluator_utils import get_sample_size

    task.set_fewshot_seed(FEWSHOT_SEED)
    try:
        task.build_all_requests(limit=get_sample_size(task, limit))
    except Exception as error:  # whatever a template meets in a record of another form
        problem = f"{task.task_name}: its data give no prompts: {_first_line(error)}"
        raise ConfigError([problem]) from None
    return list(task.instances)


def _check_same_everywhere(name: str, digests: dict[str, str]) -> None:
    """Processes compute each request together, so all must have the same."""
    if jax.process_count() > 1:
        whole = hashlib.sha256("".join(digests.values()).encode()).digest()
        every = multihost_utils.process_allgather(np.frombuffer(whole, np.uint8))
        if (every != every[0]).any():
            raise ConfigError([f"{name}: the processes read different data"])


def _metrics(reported: dict[str, Any]) -> Metrics:
    """`{"acc": 0.5, "acc_stderr": 0.1}` of lm-eval's `"acc,none"` and `"acc_stderr,none"`."""
    metrics: Metrics = {}
    for key, value in reported.items():
        name, comma, filtered = key.partition(",")
        if comma:
            ending = "_stderr" if name.endswith("_stderr") else ""
            by_filter = "" if filtered == "none" else f",{filtered}"
            number = isinstance(value, int | float | np.number)  # "N/A" is none
            name = f"{name.removesuffix('_stderr')}{by_filter}{ending}"
            metrics[name] = float(value) if number else None
    return metrics


def _details(
    task: str, found: dict[str, Any], scorer: Scorer, digests: dict[str, str]
) -> dict[str, Any]:
    """What explains the figures of a task or group."""
    details: dict[str, Any] = {"window": scorer.window}
    if isinstance(shots := found["n-shot"].get(task), int):
        details["num_fewshot"] = shots
    if task in digests:
        details["items"] = found["n-samples"][task]["effective"]
        details["version"] = str(found["versions"][task])
        details["data"] = {"requests": digests[task]}
    return details


def _add_distribution(
    result: Result, items: Sequence[Sequence[tuple[Request, Scored]]], scorer: Scorer
) -> None:
    """The distribution of token losses; the tokens of an item belong together."""
    requests, scored = zip(*(pair for item in items for pair in item), strict=True)
    nll = np.concatenate([one.nll for one in scored])
    sizes = [sum(len(one.nll) for _, one in item) for item in items]
    result.metrics.update(loss_metrics(nll, np.repeat(np.arange(len(items)), sizes)))
    result.details["worst_tokens"] = worst_tokens(requests, scored, scorer.trained.tokenizer)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
