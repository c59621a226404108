"""The real lm-eval, on its own task definitions and local data, agrees with the fast path."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from gpt_pjit.data import train_bpe
from gpt_pjit.evaluate import Scorer
from gpt_pjit.evaluate.choices import ITEMS, evaluate_items
from gpt_pjit.evaluate.requests import choice_request
from gpt_pjit.evaluate.sources import json_lines
from gpt_pjit.evaluate.tasks import prepare_tasks
from gpt_pjit.evaluate.wikitext import detokenize, pages
from gpt_pjit.trained import load_trained
from tests.helpers import ROOT, make_workdir, tiny

pytest.importorskip("lm_eval", reason="wants the extra `eval`")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.lm_eval,
    pytest.mark.filterwarnings("ignore"),  # of lm-eval and what it imports
]

SHARED = ROOT.parent / "shared/data"
WINDOW = 512  # the longest of PIQA has more than 256 tokens
LAMBADA = [
    {"text": f"there are {i} ways to say that, and one is to say it is {i}"} for i in range(9)
]
WINOGRANDE = [
    {
        "sentence": f"The {a} does not fit into the {b} because the _ is too {c}.",
        "option1": a,
        "option2": b,
        "answer": answer,
    }
    for a, b, c, answer in (("cup", "box", "large", "1"), ("chair", "room", "small", "2"))
]
HELLASWAG = [
    {
        "activity_label": "Making tea",
        "ctx_a": "[header] How to make tea [title] Boil the water.",
        "ctx_b": "the cup",
        "endings": ["is warm.", "flies [substeps] away.", "tells a story.", "is a  river."],
        "label": "0",
    }
] * 2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A run with random parameters, and a BPE of texts like those that it is to read."""
    folder = tmp_path_factory.mktemp("lm_eval")
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), SHARED / "piqa" / "valid.jsonl"]
    train_bpe([f.read_text() for f in files if f.exists()], 2000, folder / "tokenizer.json")
    config = tiny(model={"vocab_size": 2048}, data={"sequence_length": WINDOW})
    make_workdir(folder / "run", config, tokenizer=str(folder / "tokenizer.json"))
    return folder / "run"


@pytest.fixture(scope="module")
def simple_evaluate(model, tmp_path_factory):
    """`simple_evaluate(task, records)`: lm-eval's own definition of `task` on local records."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    import gpt_pjit.evaluate.lm_eval  # noqa: F401  registers the model

    definitions = Path(lm_eval.__file__).parent / "tasks"

    def run(task, definition, split, records):
        folder = tmp_path_factory.mktemp(task)
        data = folder / "data.jsonl"
        data.write_text("\n".join(map(json.dumps, records)))
        files = json.dumps({"data_files": {split: str(data)}})
        (folder / "task.yaml").write_text(
            f"include: {definitions / definition}\ntask: {task}_local\ndataset_path: json\n"
            f"dataset_name: null\ndataset_kwargs: {files}\ntraining_split: null\n"
            f"test_split: {'test' if split == 'test' else 'null'}\n"
            f"validation_split: {'validation' if split == 'validation' else 'null'}\n"
        )
        return lm_eval.simple_evaluate(
            model="gpt_pjit",
            model_args={"checkpoint": str(model)},
            tasks=[f"{task}_local"],
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            batch_size=4,
            bootstrap_iters=0,
            log_samples=True,
        )

    return run


def samples(results, task):
    rows = results["samples"][f"{task}_local"]
    return sorted(rows, key=lambda row: row["doc_id"])


@pytest.mark.parametrize("task", ["piqa", "hellaswag", "winogrande", "lambada"])
def test_tasks_agree(task, model, simple_evaluate):
    if task == "piqa":
        if not (SHARED / "piqa").exists():
            pytest.skip("wants ../shared/data")
        records = json_lines((SHARED / "piqa" / "valid.jsonl").read_bytes())
        labels = (SHARED / "piqa" / "valid-labels.lst").read_text().split()
        records = [r | {"label": int(x)} for r, x in zip(records, labels, strict=True)]
    else:
        records = {"hellaswag": HELLASWAG, "winogrande": WINOGRANDE, "lambada": LAMBADA}[task]
    definition = {
        "winogrande": "winogrande/default.yaml",
        "lambada": "lambada/lambada_openai.yaml",
    }.get(task, f"{task}/{task}.yaml")
    split = "test" if task == "lambada" else "validation"
    theirs = simple_evaluate(task, definition, split, records)

    scorer = Scorer(load_trained(model), rows=2)
    items = [ITEMS[task](record) for record in records]
    pairs = [pair for item in items for pair in item.pairs]
    encode = scorer.trained.tokenizer
    scored = scorer.score([choice_request(encode, *pair, WINDOW) for pair in pairs])
    arguments, answers = [], []
    for row in samples(theirs, task):
        arguments += [tuple(a) for a in row["arguments"]]
        answers += [answer[0] for answer in row["resps"]]
    assert arguments == pairs  # identical requests
    ours = np.array([result.log_likelihood for result in scored])
    worst = np.abs(ours - np.array([answer[0] for answer in answers])).max()
    print(f"{task}: {len(pairs)} requests, largest difference {worst:.2e} nats")
    assert worst < 1e-4
    assert [answer[1] for answer in answers] == [result.is_greedy for result in scored]

    metrics = evaluate_items(scorer, records, task).metrics
    reported = theirs["results"][f"{task}_local"]
    for name in ("acc", "acc_norm"):
        if f"{name},none" in reported and name in metrics:
            assert metrics[name] == reported[f"{name},none"]
            print(f"{task} {name}: {metrics[name]} by both")
    if task == "lambada":
        assert metrics["perplexity"] == pytest.approx(reported["perplexity,none"], rel=1e-6)


@pytest.mark.shared_data
@pytest.mark.skipif(not (SHARED / "wikitext2").exists(), reason="wants ../shared/data")
def test_wikitext_agrees(model, simple_evaluate):
    raw = (SHARED / "wikitext2" / "wiki.test.raw").read_text(encoding="utf-8")
    records = [{"page": page} for page in pages(raw)]
    theirs = simple_evaluate("wikitext", "wikitext/wikitext.yaml", "test", records)
    scorer = Scorer(load_trained(model), rows=4)
    (task,) = prepare_tasks(["wikitext2"], SHARED).values()
    metrics = task(scorer, WINDOW).metrics
    reported = theirs["results"]["wikitext_local"]
    for name in ("bits_per_byte", "byte_perplexity", "word_perplexity"):
        print(f"{name}: {metrics[name]} and {reported[f'{name},none']}")
        assert metrics[name] == pytest.approx(reported[f"{name},none"], rel=1e-9)
    for row, record in zip(samples(theirs, "wikitext"), records, strict=True):
        assert row["target"] == detokenize(record["page"])


def test_entry_point_is_the_model():
    """By it, releases after 0.4.13 find the model; group and form are of lm-eval's plugin guide."""
    from importlib.metadata import EntryPoint

    from gpt_pjit.evaluate.lm_eval import GptPjitLM

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ((name, value),) = project["entry-points"]["lm_eval.models"].items()
    assert EntryPoint(name, value, "lm_eval.models").load() is GptPjitLM
    assert name == "gpt_pjit"


def test_generation_stops(model):
    from lm_eval.api.instance import Instance

    from gpt_pjit.evaluate.lm_eval import GptPjitLM

    lm = GptPjitLM(str(model))
    request = {"until": ["\n"], "max_gen_toks": 40, "do_sample": False}
    instances = [
        Instance("generate_until", {}, (context, request), 0) for context in ("Once", "Twice", "")
    ]
    texts = lm.generate_until(instances)
    assert len(texts) == 3
    assert all("\n" not in text for text in texts)
    whole = lm.generate_until([Instance("generate_until", {}, ("Once", {"max_gen_toks": 40}), 0)])
    assert whole[0].startswith(texts[0])
    stopped = {"until": [whole[0][10:14]], "max_gen_toks": 40}
    (short,) = lm.generate_until([Instance("generate_until", {}, ("Once", stopped), 0)])
    assert short == whole[0][: whole[0].index(whole[0][10:14])]


def test_command_line(model, tmp_path):
    """lm-eval's own command line finds the model, and a wrong checkpoint is one message."""
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, LAMBADA)))
    files = json.dumps({"data_files": {"test": str(tmp_path / "data.jsonl")}})
    (tmp_path / "local.yaml").write_text(
        "task: last_words\noutput_type: loglikelihood\ndataset_path: json\ntest_split: test\n"
        f"dataset_kwargs: {files}\n"
        "doc_to_text: \"{{text.split(' ')[:-1]|join(' ')}}\"\n"
        "doc_to_target: \"{{' '+text.split(' ')[-1]}}\"\n"
        "metric_list:\n  - metric: acc\n"
    )

    def command(checkpoint):
        arguments = [sys.executable, "-m", "gpt_pjit.evaluate.lm_eval", "--model", "gpt_pjit"]
        arguments += ["--model_args", f"checkpoint={checkpoint}", "--tasks", "last_words"]
        arguments += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
        return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=900)

    done = command(model)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out").rglob("results_*.json")
    assert "acc,none" in json.loads(path.read_text())["results"]["last_words"]
    wrong = command(tmp_path / "nothing")
    assert wrong.returncode == 78
    assert "holds no run.json" in wrong.stderr
    assert "Traceback" not in wrong.stderr
