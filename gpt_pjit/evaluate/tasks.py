"""Tasks by their names: prepared once, and scored by the command, or by a run as it trains."""

import dataclasses
import math
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from gpt_pjit.config import Config
from gpt_pjit.core.console import warn
from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.core.model import Model
from gpt_pjit.core.sharding import BATCH_AXES
from gpt_pjit.core.tokens import Tokenizer
from gpt_pjit.evaluate.core_metric import CORE, prepare_core
from gpt_pjit.evaluate.followers import follow
from gpt_pjit.evaluate.harness import Harness, require_lm_eval
from gpt_pjit.evaluate.losses import Job, Result
from gpt_pjit.evaluate.orders import order
from gpt_pjit.evaluate.report import headline
from gpt_pjit.evaluate.scorer import Scorer, Ticking
from gpt_pjit.evaluate.texts import is_text, prepare_text
from gpt_pjit.trained import Trained


def require_packages(tasks: Sequence[str]) -> None:
    """Raises ConfigError if tasks of lm-eval are among them, and it is not there."""
    if theirs := [task for task in tasks if not is_text(task) and task != CORE]:
        require_lm_eval(theirs)


def prepare_jobs(
    tasks: Sequence[str],
    scorer: Scorer,
    stride: int | None = None,
    data_dir: Path | None = None,
    num_fewshot: int | None = None,
    limit: float | None = None,
) -> list[Job]:
    """A job for each task, with its data and requests; ConfigError with the problems of all."""
    stride = stride or scorer.window
    if stride > scorer.window:
        raise ConfigError(
            [f"--stride={stride} is longer than the window, {scorer.window}"], "flags"
        )
    jobs: list[Job] = []
    problems: list[Problem | str] = []
    with tempfile.TemporaryDirectory() as folder:
        harness = None
        for task in tasks:
            try:
                if is_text(task):
                    jobs.append(prepare_text(task, scorer, stride, data_dir))
                    continue
                if task == CORE:
                    jobs.append(prepare_core(scorer, data_dir, limit))
                    continue
                harness = harness or Harness(scorer, Path(folder), data_dir, num_fewshot, limit)
                jobs.append(harness.prepare(task))
            except ConfigError as error:
                problems.extend(error.problems)
    if problems:
        raise ConfigError(problems, "--tasks")
    return jobs


def tasks_in_run(
    model: Model, tokenizer: Tokenizer, config: Config, ticking: Ticking
) -> Callable[[Any], dict[str, float]]:
    """Prepares `eval.tasks` on process 0, which reads their data here; ConfigError with all that is
    wrong with them.

    Returns a function of the parameters, which all processes call inside `jax.set_mesh`. On process
    0 it gives `{"evaluation/piqa/acc": 0.7, "evaluation/piqa/acc_stderr": 0.01}`. A task whose
    losses are not finite is a warning.
    """
    c, parts = config.eval, math.prod(model.mesh.shape[axis] for axis in BATCH_AXES)
    # As many tokens at once as in a step, whose memory is there.
    rows = config.data.batch_size // (config.optim.microbatches * parts)
    trained = Trained(model, None, tokenizer, config, Path(), 0)
    scorer = Scorer(trained, rows=rows, ticking=ticking)
    jobs: dict[str, Job] = {}
    if jax.process_index() == 0:
        data_dir = Path(c.tasks_data_dir).expanduser() if c.tasks_data_dir else None
        try:
            require_packages(c.tasks)
            found = prepare_jobs(c.tasks, scorer, data_dir=data_dir, limit=c.tasks_limit or None)
        except ConfigError as error:
            raise ConfigError(error.problems, "eval.tasks") from None
        jobs = dict(zip(c.tasks, found, strict=True))

    def score(params: Any) -> dict[str, float]:
        scorer.trained = dataclasses.replace(trained, weights=model.weights(params))
        metrics: dict[str, float] = {}
        if jax.process_index() != 0:
            follow(scorer.trained, ticking)
        else:
            for task, job in jobs.items():
                try:
                    metrics |= _figures(task, job())
                except ConfigError as error:
                    warn(str(error))
            order("end")
        scorer.trained = trained  # without weights, whose memory the next step needs
        return metrics

    return score


def _figures(task: str, found: dict[str, Result]) -> dict[str, float]:
    """The figures that stand beside those of other models, with their standard errors; of a group
    that has figures of its own, these alone. Names are of characters that all trackers take.
    """
    own = {task: found[task]} if task in found and any(_own(found[task])) else found
    metrics = {f"evaluation/{name}/{key}": x for name, of in own.items() for key, x in _own(of)}
    return {re.sub(r"[^\w.:/-]", "_", name, flags=re.ASCII): x for name, x in metrics.items()}


def _own(result: Result) -> list[tuple[str, float]]:
    names = [name for head in headline(result.metrics) for name in (head, f"{head}_stderr")]
    return [(name, x) for name in names if (x := result.metrics.get(name)) is not None]
