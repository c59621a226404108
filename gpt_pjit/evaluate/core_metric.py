"""CORE of DCLM (Li et al., 2024): accuracies of 22 tasks, each 0 for a guess and 1 for a perfect
model, and their mean.

Tasks, examples and baselines are those of github.com/mlfoundations/dclm, eval/mmlu_and_lowvar.yaml
and eval_meta_data_v1.csv; prompts, draws of examples and scoring are those of nanochat, whose
leaderboard counts in it. lm-eval cannot give it: it has no `jeopardy`, other prompts, and no mean
loss of a token, by which choices are compared here.
"""

import hashlib
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpt_pjit.core.console import warn
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.evaluate.losses import Job, Metrics, Result, ratio, with_stderr
from gpt_pjit.evaluate.scorer import Request, Scorer, fitted

CORE = "core"
PLACES = ("eval_data", "local_data", ".")  # of nanochat's bundle, and of DCLM's
SHUFFLE_SEED, EXAMPLES_SEED = 1337, 1234  # nanochat's
CHOICE, SCHEMA, TEXT = "multiple choice", "schema", "language modeling"
ANSWER = "\nAnswer: "
Record = dict[str, Any]


class Task(NamedTuple):
    """A row: `file` without .jsonl, the number of examples, what a guess gets in percent."""

    name: str
    file: str
    examples: int
    kind: str
    baseline: float
    delimiter: str = " "  # between question and answer


TASKS = (
    Task("hellaswag_zeroshot", "language_understanding/hellaswag", 0, CHOICE, 25),
    Task("jeopardy", "world_knowledge/jeopardy_all", 10, TEXT, 0, ANSWER),
    Task("bigbench_qa_wikidata", "world_knowledge/bigbench_qa_wikidata", 10, TEXT, 0),
    Task("arc_easy", "world_knowledge/arc_easy", 10, CHOICE, 25, ANSWER),
    Task("arc_challenge", "world_knowledge/arc_challenge", 10, CHOICE, 25, ANSWER),
    Task("copa", "commonsense_reasoning/copa", 0, CHOICE, 50),
    Task("commonsense_qa", "commonsense_reasoning/commonsense_qa", 10, CHOICE, 20),
    Task("piqa", "commonsense_reasoning/piqa", 10, CHOICE, 50, ANSWER),
    Task("openbook_qa", "commonsense_reasoning/openbook_qa", 0, CHOICE, 25),
    Task("lambada_openai", "language_understanding/lambada_openai", 0, TEXT, 0),
    Task("hellaswag", "language_understanding/hellaswag", 10, CHOICE, 25),
    Task("winograd", "language_understanding/winograd_wsc", 0, SCHEMA, 50),
    Task("winogrande", "language_understanding/winogrande", 0, SCHEMA, 50),
    Task("dyck_languages", "symbolic_problem_solving/bigbench_dyck_languages", 10, TEXT, 0),
    Task("agi_eval_lsat_ar", "symbolic_problem_solving/agi_eval_lsat_ar", 3, CHOICE, 20),
    Task("cs_algorithms", "symbolic_problem_solving/bigbench_cs_algorithms", 10, TEXT, 0),
    Task("operators", "symbolic_problem_solving/bigbench_operators", 10, TEXT, 0),
    Task("repeat_copy_logic", "symbolic_problem_solving/bigbench_repeat_copy_logic", 10, TEXT, 0),
    Task("squad", "reading_comprehension/squad", 10, TEXT, 0),
    Task("coqa", "reading_comprehension/coqa", 0, TEXT, 0),
    Task("boolq", "reading_comprehension/boolq", 10, CHOICE, 62, ANSWER),
    Task(
        "language_identification",
        "language_understanding/bigbench_language_identification",
        10,
        CHOICE,
        9.1,
    ),
)


def prepare_core(scorer: Scorer, data_dir: Path | None, limit: float | None) -> Job:
    """The job of the tasks whose files are in `data_dir`, read and checked here; a warning names
    the others, without which there is no CORE.
    """
    found = {task: path for task in TASKS if (path := _find(task, data_dir))}
    if not found:
        problem = f"{CORE} needs the files of its 22 tasks, as in nanochat's eval_bundle"
        raise ConfigError([f"{problem}; pass --data_dir, or set eval.tasks_data_dir in a run"])
    missing = [task.name for task in TASKS if task not in found]
    if missing:
        lacks = f"{data_dir} lacks {', '.join(missing)}"
        warn(f"{CORE}: {lacks}; the others are scored, but CORE is not computed")
    jobs = {task: _prepare(task, path, scorer, limit) for task, path in found.items()}

    def job() -> dict[str, Result]:
        results = {f"{CORE}/{task.name}": score() for task, score in jobs.items()}
        parts = [result.metrics["centered"] or 0.0 for result in results.values()]
        mean = None if missing else float(np.mean(parts))
        return results | {CORE: Result({CORE: mean}, {"missing": missing})}

    return job


def centered(accuracy: float, baseline: float) -> float:
    """0 for the accuracy of a guess, in percent, and 1 for a perfect one."""
    return (accuracy - baseline / 100) / (1 - baseline / 100)


def _find(task: Task, data_dir: Path | None) -> Path | None:
    places = [data_dir / place / f"{task.file}.jsonl" for place in PLACES] if data_dir else []
    return next((place for place in places if place.is_file()), None)


def _prepare(task: Task, path: Path, scorer: Scorer, limit: float | None) -> Callable[[], Result]:
    content = path.read_bytes()
    try:
        records = [json.loads(line) for line in content.decode().splitlines() if line.strip()]
        random.Random(SHUFFLE_SEED).shuffle(records)  # noqa: S311
        count = len(records)
        if limit is not None:
            count = min(count, math.ceil(limit if limit >= 1 else limit * count))
        texts = [_texts(task, records, number) for number in range(count)]
        gold = [record.get("gold", 0) for record in records[:count]]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        problem = f"{path} is not the data of {task.name}: {type(error).__name__}: {error}"
        raise ConfigError([problem]) from None
    data = {"file": str(path), "sha256": hashlib.sha256(content).hexdigest()}
    details = {"items": count, "num_fewshot": task.examples, "window": scorer.window, "data": data}

    def score() -> Result:
        items = [_requests(task, choices, scorer) for choices in texts]
        scored = iter(scorer.score([request for item in items for request in item], task.name))
        right = np.zeros(count)
        for number, item in enumerate(items):
            answers = [next(scored) for _ in item]
            if task.kind == TEXT:
                right[number] = answers[0].greedy.all()
            else:
                right[number] = np.argmin([a.nll.mean() for a in answers]) == gold[number]
        metrics: Metrics = ratio("acc", right, np.ones(count))
        accuracy, error = metrics["acc"] or 0.0, metrics["acc_stderr"]
        of_centered = error and error / (1 - task.baseline / 100)
        value = with_stderr("centered", centered(accuracy, task.baseline), of_centered)
        return Result(metrics | value, details)

    return score


def _texts(task: Task, records: Sequence[Record], number: int) -> list[str]:
    """The item `number` after its examples, with each choice; without the answer and with it, if
    that is written.
    """
    others = [i for i in range(len(records)) if i != number]
    draw = random.Random(EXAMPLES_SEED + number)  # noqa: S311
    shown = [records[i] for i in draw.sample(others, task.examples)]
    before = "".join(f"{_example(task, record)}\n\n" for record in shown)
    record = records[number]
    if task.kind == CHOICE:
        return [f"{before}{record['query']}{task.delimiter}{one}" for one in record["choices"]]
    if task.kind == SCHEMA:
        answer = f"{task.delimiter}{record['continuation']}"
        return [f"{before}{context}{answer}" for context in record["context_options"]]
    question = f"{before}{record['context'].strip()}{task.delimiter}"
    return [question.strip(), question + record["continuation"]]


def _requests(task: Task, texts: list[str], scorer: Scorer) -> list[Request]:
    """Scored are the tokens after those that all texts begin with; of a schema, those that all end
    with.
    """
    tokenizer = scorer.trained.tokenizer
    rows = [ids.tolist() for ids in tokenizer.encode_batch(texts)]
    if task.kind == SCHEMA:
        scored = [_shared([row[::-1] for row in rows])] * len(rows)
    else:
        scored = [len(row) - _shared(rows) for row in rows]
    if task.kind == TEXT:
        rows, scored = rows[1:], scored[1:]
    # A choice that begins another has no token of its own: its last stands for it.
    requests = [
        Request((tokenizer.eot_id, *row), max(n, 1)) for row, n in zip(rows, scored, strict=True)
    ]
    return fitted(requests, scorer.window, f"{CORE}/{task.name}")


def _shared(rows: list[list[int]]) -> int:
    """How many tokens all rows begin with."""
    places = enumerate(zip(*rows, strict=False))
    return next((n for n, ids in places if len(set(ids)) > 1), min(map(len, rows)))


def _example(task: Task, record: Record) -> str:
    if task.kind == CHOICE:
        return f"{record['query']}{task.delimiter}{record['choices'][record['gold']]}"
    if task.kind == SCHEMA:
        answer = record["continuation"]
        return f"{record['context_options'][record['gold']]}{task.delimiter}{answer}"
    return f"{record['context'].strip()}{task.delimiter}{record['continuation']}"
