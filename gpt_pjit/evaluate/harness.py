"""Tasks and groups of lm-eval: its prompts, metrics and standard errors, our scorer."""

import contextlib
import hashlib
import json
import logging
import os
import random
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.evaluate.losses import Job, Metrics, Result, loss_metrics, worst_tokens
from gpt_pjit.evaluate.scorer import Request, Scored, Scorer

SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
SYNONYMS = ({"train"}, {"validation", "valid", "val", "dev"}, {"test"})  # in names of files
SEED, NUMPY_SEED, FEWSHOT_SEED = 0, 1234, 1234  # lm-eval's own
BOOTSTRAPS = 1_000  # lm-eval draws 100,000: minutes, for a third digit of a standard error


def require_lm_eval(names: Sequence[str]) -> None:
    if find_spec("lm_eval") is None:
        needs = f"{', '.join(names)} {'need' if len(names) > 1 else 'needs'} lm-eval"
        raise ConfigError([f"{needs}: pip install 'gpt_pjit[eval]'"], "--tasks")


class Harness:
    """lm-eval's tasks, for a scorer; `folder` is a temporary one, needed while they are prepared.

    A task with a folder of its name in `data_dir` reads that, in whatever group it is.
    """

    def __init__(
        self,
        scorer: Scorer,
        folder: Path,
        data_dir: Path | None,
        num_fewshot: int | None,
        limit: float | None,
    ):
        os.environ.setdefault("TQDM_DISABLE", "1")  # our own bar shows the progress
        os.environ["DISABLE_MULTIPROC"] = "1"  # forks beside JAX's threads may never end
        from lm_eval.tasks import TaskManager

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        self._scorer, self._num_fewshot, self._limit = scorer, num_fewshot, limit
        self._manager = TaskManager()
        self.digests: dict[str, str] = {}  # of the requests of each task
        if data_dir:
            self._use_local_data(data_dir, folder)

    def prepare(self, name: str) -> Job:
        """The task, group or pattern `name`: its requests are built and checked here.

        The job builds them again, from the same seeds.
        """
        import lm_eval

        from gpt_pjit.evaluate.model import ScorerLM

        loaded = self._load(name)
        tasks: dict[str, Any] = loaded["tasks"]
        model = ScorerLM(self._scorer)
        model.label = name
        for task_name, task in tasks.items():
            instances = self._instances(task)
            model.check(instances, task_name)
            requests = json.dumps([[i.request_type, i.args] for i in instances], default=str)
            self.digests[task_name] = hashlib.sha256(requests.encode()).hexdigest()

        def job() -> dict[str, Result]:
            # The distribution of losses is of use where each token scored is right.
            kinds = {task_name: str(task.OUTPUT_TYPE) for task_name, task in tasks.items()}
            model.losses = {n: [] for n, kind in kinds.items() if kind.startswith("loglikelihood")}
            for task in tasks.values():
                task.set_fewshot_seed(FEWSHOT_SEED)
            with contextlib.redirect_stdout(sys.stderr):
                found = lm_eval.evaluate(
                    model, loaded, limit=self._limit, bootstrap_iters=BOOTSTRAPS, log_samples=False
                )
            reported = {n: _metrics(metrics) for n, metrics in found["results"].items()}
            return {
                n: self._result(n, metrics, found, self.digests.get(n), model.losses.get(n))
                for n, metrics in reported.items()
                if metrics  # a group may have no figures of its own
            }

        return job

    def _result(
        self,
        task: str,
        metrics: Metrics,
        found: dict[str, Any],
        digest: str | None,
        items: Sequence[Sequence[tuple[Request, Scored]]] | None,
    ) -> Result:
        """What lm-eval `found` of a task or group, with the losses of the tokens of its `items`."""
        details: dict[str, Any] = {"window": self._scorer.window}
        if isinstance(shots := found["n-shot"].get(task), int):
            details["num_fewshot"] = shots
        if digest:
            details["items"] = found["n-samples"][task]["effective"]
            details["version"] = str(found["versions"][task])
            details["data"] = {"requests": digest}
        if items:
            requests, scored = zip(*(pair for item in items for pair in item), strict=True)
            sizes = [sum(len(one.nll) for _, one in item) for item in items]
            nll = np.concatenate([one.nll for one in scored])
            metrics = metrics | loss_metrics(nll, np.repeat(np.arange(len(items)), sizes))
            tokenizer = self._scorer.trained.tokenizer
            details["worst_tokens"] = worst_tokens(requests, scored, tokenizer)
        return Result(metrics, details)

    def _load(self, name: str) -> dict[str, Any]:
        """lm-eval's `TaskDict` of the task, group or pattern, with its data."""
        matches = self._manager.match_tasks([name])
        if not matches:
            problem = f"{name} is neither a text nor a task of lm-eval; `lm-eval ls tasks` has all"
            raise ConfigError([problem])
        random.seed(SEED)
        np.random.seed(NUMPY_SEED)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                loaded: dict[str, Any] = self._manager.load(matches)
        except Exception as error:  # of several libraries: no network, no such file, ...
            raise ConfigError([f"{name} cannot be loaded: {_short(error)}"]) from None
        for task in loaded["tasks"].values():
            if getattr(task, "MULTIMODAL", False) or getattr(task, "UNSAFE_CODE", False):
                problem = f"{task.task_name} reads images or sound, or runs code of the model"
                raise ConfigError([f"{problem}; see python -m gpt_pjit.evaluate.lm_eval"])
            own = task.get_config("num_fewshot")
            if own != 0:  # by lm-eval's rule, a task that sets 0 itself keeps it
                wanted = own if self._num_fewshot is None else self._num_fewshot
                task.set_config(key="num_fewshot", value=wanted or 0)
        return loaded

    def _instances(self, task: Any) -> list[Any]:
        """The task's requests; ConfigError where its data lack what the prompts are made of."""
        from lm_eval.evaluator_utils import get_sample_size

        task.set_fewshot_seed(FEWSHOT_SEED)
        try:
            task.build_all_requests(limit=get_sample_size(task, self._limit))
        except Exception as error:  # whatever a template meets in a record of another form
            problem = f"{task.task_name}: its data give no prompts: {_short(error)}"
            raise ConfigError([problem]) from None
        return list(task.instances)

    def _use_local_data(self, data_dir: Path, folder: Path) -> None:
        """Definitions that include lm-eval's take their place."""
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
            raise ConfigError([f"{local}: {names} both match split {split}; keep one"])
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
    labels = path.with_name(f"{path.stem}-labels.lst")
    try:
        records = [dict(json.loads(line)) for line in path.read_bytes().rstrip().split(b"\n")]
        if labels.exists():
            pairs = zip(records, labels.read_text().split(), strict=True)
            records = [record | {"label": int(label)} for record, label in pairs]
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            [f"{path} does not hold one JSON record per line: {_short(error)}"]
        ) from None
    return records


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


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
