"""CORE: its table, its prompts as nanochat writes them, its scores, and what is said of gaps."""

import json
import random

import numpy as np
import pytest

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.evaluate import core_metric
from gpt_pjit.evaluate.core_metric import CHOICE, SCHEMA, TASKS, TEXT, Task, centered
from gpt_pjit.evaluate.scorer import PrefixGroup, Scorer
from gpt_pjit.evaluate.tasks import prepare_jobs

PIQA = [{"query": f"Q{i}", "choices": ["ab", "cd"], "gold": 0} for i in range(12)]
JEOPARDY = [{"context": f"C{i}: which? ", "continuation": "ab"} for i in range(12)]
WINOGRAD = [
    {"context_options": ["the cup is", "the box is"], "continuation": "ab", "gold": i % 2}
    for i in range(4)
]
FILES = {
    "commonsense_reasoning/piqa": PIQA,
    "world_knowledge/jeopardy_all": JEOPARDY,
    "language_understanding/winograd_wsc": WINOGRAD,
}


@pytest.fixture
def table_scorer(with_logits, monkeypatch):
    """`table_scorer(table)`: a model of bigrams has no cache in which to share contexts."""

    def alone(requests, window):
        return [PrefixGroup((), (request,)) for request in requests]

    monkeypatch.setattr("gpt_pjit.evaluate.scorer.group_by_prefix", alone)
    return lambda table: Scorer(with_logits(table), window=512)


@pytest.fixture
def data_dir(tmp_path):
    for name, records in FILES.items():
        path = tmp_path / "eval_data" / f"{name}.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


def test_a_guess_is_0_and_a_perfect_model_1():
    for baseline in (0, 9.1, 25, 62):
        assert centered(baseline / 100, baseline) == pytest.approx(0)
        assert centered(1.0, baseline) == pytest.approx(1)
    assert centered(0.3717, 25) == pytest.approx(0.1623, abs=1e-4)


def test_the_table_is_that_of_22_tasks():
    assert len({task.name for task in TASKS}) == 22
    assert sum(task.kind == TEXT for task in TASKS) == 9
    assert {task.kind for task in TASKS} == {TEXT, CHOICE, SCHEMA}
    assert sum(task.baseline for task in TASKS) == pytest.approx(436.1)
    assert all(task.baseline == 0 for task in TASKS if task.kind == TEXT)


def test_prompts_are_nanochats():
    choice = Task("piqa", "", 1, CHOICE, 50, "\nAnswer: ")
    (first, second) = core_metric._texts(choice, PIQA[:2], 0)
    assert first == "Q1\nAnswer: ab\n\nQ0\nAnswer: ab"
    assert second == "Q1\nAnswer: ab\n\nQ0\nAnswer: cd"
    written = Task("jeopardy", "", 1, TEXT, 0, "\nAnswer: ")
    without, whole = core_metric._texts(written, JEOPARDY[:2], 1)
    assert without == "C0: which?\nAnswer: ab\n\nC1: which?\nAnswer:"
    assert whole == f"{without} ab"
    schema = Task("winograd", "", 0, SCHEMA, 50)
    assert core_metric._texts(schema, WINOGRAD, 0) == ["the cup is ab", "the box is ab"]


def test_only_answers_are_scored(trained):
    scorer = Scorer(trained, window=256)
    rows = core_metric._requests(TASKS[7], ["Q\nAnswer: ab", "Q\nAnswer: ace"], scorer)
    assert [request.scored for request in rows] == [1, 2]  # after the letter that both have
    assert rows[1].tokens == (256, *b"Q\nAnswer: ace")
    (row,) = core_metric._requests(TASKS[1], ["Q\nAnswer:", "Q\nAnswer: ab"], scorer)
    assert row.scored == 3
    rows = core_metric._requests(TASKS[11], ["the cup is ab", "the box is ab"], scorer)
    assert [request.scored for request in rows] == [len(" is ab")] * 2


def test_accuracies_are_centred_and_gaps_are_said(table_scorer, data_dir, capsys):
    """A model that says `ab` after anything gets all of PIQA, and of schemas what a guess gets."""
    table = np.zeros((257, 512))
    table[:, ord("a")], table[ord("a")] = 5, 0
    table[ord("a"), ord("b")] = 9
    table[ord(":"), ord(" ")] = 9
    scorer = table_scorer(table)
    (job,) = prepare_jobs(["core"], scorer, data_dir=data_dir)
    assert "lacks hellaswag_zeroshot, bigbench_qa_wikidata" in capsys.readouterr().err
    results = job()
    found = {name: result.metrics for name, result in results.items()}
    assert found["core/piqa"]["acc"] == found["core/piqa"]["centered"] == 1
    assert found["core/jeopardy"]["acc"] == 1
    assert found["core/winograd"]["acc"] == 0.5
    assert found["core/winograd"]["centered"] == 0
    assert found["core/winograd"]["centered_stderr"] == 2 * found["core/winograd"]["acc_stderr"]
    assert found["core"] == {"core": None}  # 19 tasks are missing
    assert len(results["core"].details["missing"]) == 19
    assert results["core/piqa"].details["num_fewshot"] == 10
    (job,) = prepare_jobs(["core"], scorer, data_dir=data_dir, limit=3)
    assert job()["core/piqa"].details["items"] == 3


def test_the_choice_of_least_mean_loss_is_the_models(trained, plain, data_dir):
    """Choices of unequal length, so that the sum would often choose another."""
    piqa = data_dir / "eval_data" / "commonsense_reasoning" / "piqa.jsonl"
    choices = ["ab", "a longer choice"]
    records = [{"query": f"{i:02}", "choices": choices, "gold": i % 2} for i in range(12)]
    piqa.write_text("".join(json.dumps(record) + "\n" for record in records))
    scorer = Scorer(trained, window=256)
    (job,) = prepare_jobs(["core"], scorer, data_dir=data_dir, limit=6)
    task = next(task for task in TASKS if task.name == "piqa")
    random.Random(1337).shuffle(records)  # noqa: S311
    right = 0
    for number in range(6):
        texts = core_metric._texts(task, records, number)
        means = [plain(r)[0].mean() for r in core_metric._requests(task, texts, scorer)]
        right += int(np.argmin(means)) == records[number]["gold"]
    assert job()["core/piqa"].metrics["acc"] == pytest.approx(right / 6)


def test_with_all_tasks_it_is_the_mean(table_scorer, data_dir, monkeypatch):
    known = [task for task in TASKS if task.file in FILES]
    monkeypatch.setattr(core_metric, "TASKS", known)
    (job,) = prepare_jobs(["core"], table_scorer(np.zeros((257, 512))), data_dir=data_dir)
    results = job()
    parts = [results[f"core/{task.name}"].metrics["centered"] for task in known]
    assert results["core"].metrics["core"] == pytest.approx(sum(parts) / 3)


def test_what_cannot_be_read_is_one_message(trained, data_dir, tmp_path):
    scorer = Scorer(trained)
    with pytest.raises(ConfigError, match="needs the files of its 22 tasks"):
        prepare_jobs(["core"], scorer, data_dir=tmp_path / "eval_data" / "world_knowledge")
    (data_dir / "eval_data" / "commonsense_reasoning" / "piqa.jsonl").write_text('{"query": "Q"}\n')
    with pytest.raises(ConfigError, match=r"piqa.jsonl is not the data of piqa: .*"):
        prepare_jobs(["core"], scorer, data_dir=data_dir)
