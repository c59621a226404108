"""The real lm-eval, on its own task definitions and local data, agrees with the fast path."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest

from gpt_pjit.core.errors import EXIT_CONFIG, ConfigError
from gpt_pjit.core.tokens import train_bpe
from gpt_pjit.evaluate.choices import prepare_items, read_items
from gpt_pjit.evaluate.requests import choice_request
from gpt_pjit.evaluate.scorer import Scorer
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
        records = json_lines((SHARED / "piqa" / "valid.jsonl").read_bytes(), "valid.jsonl")
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
    items = read_items(records, task, task)
    pairs = [pair for item in items for pair in item.pairs]
    encode = scorer.trained.tokenizer
    scored = scorer.score(scorer.fitted([choice_request(encode, *pair) for pair in pairs], task))
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

    metrics = prepare_items(scorer, items, task)().metrics
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
    metrics = task(scorer, WINDOW)().metrics
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


@pytest.fixture(scope="module")
def lm(model):
    from gpt_pjit.evaluate.lm_eval import GptPjitLM

    return GptPjitLM(str(model))


def instances(kind, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, pair, number) for number, pair in enumerate(arguments)]


def test_generation_stops(lm):
    def generate(*arguments):
        return lm.generate_until(instances("generate_until", *arguments))

    request = {"until": ["\n", ""], "max_gen_toks": 40, "do_sample": False}
    texts = generate(*((context, request) for context in ("Once", "Twice", "")))
    assert len(texts) == 3
    assert all("\n" not in text for text in texts)
    whole = generate(("Once", {"max_gen_toks": 40}))
    assert whole[0].startswith(texts[0])
    stopped = {"until": [whole[0][10:14]], "max_gen_toks": 40}
    (short,) = generate(("Once", stopped))
    assert short == whole[0][: whole[0].index(whole[0][10:14])]


def test_options_of_generation_are_read_as_lm_eval_reads_them(caplog):
    from gpt_pjit.evaluate.lm_eval.model import Wish, wish
    from gpt_pjit.generate import Sampling

    greedy, window = Sampling(0.0), 300
    assert wish({"do_sample": False, "temperature": 1}, window) == Wish(256, greedy, ())
    assert wish({"max_gen_toks": None, "max_tokens": 9}, window).max_new_tokens == 9
    assert wish({"until": ["", "."]}, window).stop == (".",)
    assert wish({"do_sample": True}, window).sampling == Sampling(1.0)
    sampled = {"temperature": 0.5, "top_k": 4, "top_p": 0.9}
    assert wish(sampled, window).sampling == Sampling(0.5, 4, 0.9)
    assert not [record for record in caplog.records if "ignores" in record.message]
    assert wish({"num_beams": 2}, window) == Wish(256, greedy, ())
    assert "generation ignores num_beams=2" in caplog.text


def test_prompts_have_room_or_it_is_said(lm, caplog):
    long = "one and two and " * 500
    lm.generate_until(instances("generate_until", (long, {"max_gen_toks": 8})))
    assert f"1 of 1 prompts are cut from the left to {WINDOW - 8} tokens" in caplog.text
    with pytest.raises(ConfigError, match=rf"max_gen_toks={WINDOW}: leaves no room .* {WINDOW} "):
        lm.generate_until(instances("generate_until", ("a", {"max_gen_toks": WINDOW})))


def test_batches_of_generation_are_as_large_as_asked(lm, monkeypatch):
    """As many sequences as take the memory of `batch_size` full windows on each device."""
    import gpt_pjit.evaluate.lm_eval.model as module

    sizes = []
    stream = module.stream

    def spied(*arguments, batch_size):
        sizes.append(batch_size)
        return stream(*arguments, batch_size=batch_size)

    monkeypatch.setattr(module, "stream", spied)
    lm.generate_until(instances("generate_until", ("once" * 10, {"max_gen_toks": 20})))
    length = len(lm.tok_encode("once" * 10)) + 20
    assert sizes == [WINDOW // length * lm.trained.mesh.shape["data"]]


def test_mistakes_are_one_message(model, lm, monkeypatch):
    from gpt_pjit.evaluate.lm_eval import GptPjitLM

    with pytest.raises(ConfigError, match="4 problems") as error:
        GptPjitLM(windw=5, window="big", batch_size="many")
    for words in ("windw=5: no such argument; known: checkpoint", "window='big': is no number"):
        assert words in str(error.value)
    assert GptPjitLM(str(model), batch_size="auto:4").scorer.rows == 1
    (spaces, empty) = lm.loglikelihood(instances("loglikelihood", (" ", "yes"), ("", " yes")))
    assert spaces == empty
    with pytest.raises(
        ConfigError, match="lm-eval: 1 of 1 continuations to be scored have no tokens"
    ):
        lm.loglikelihood(instances("loglikelihood", ("yes", "")))
    with pytest.raises(ConfigError, match="leave --apply_chat_template out"):
        lm.apply_chat_template([])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match="leave --use_cache out"):
        lm.set_cache_hook(None)


def test_the_module_that_runs_is_the_one_of_the_entry_point(monkeypatch):
    """One class for both ways in, or lm-eval finds the name taken."""
    import runpy

    import lm_eval.__main__
    from gpt_pjit.gpt_pjit import trained
    from lm_eval.api.registry import get_model

    from gpt_pjit.evaluate.lm_eval import GptPjitLM

    seen = []
    monkeypatch.setattr(trained, "start_devices", lambda **options: seen.append(options))
    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", lambda: seen.append(sys.argv[1:]))
    monkeypatch.setattr(sys, "argv", ["lm_eval", "--distributed", "--model", "gpt_pjit"])
    runpy.run_module("gpt_pjit.evaluate.lm_eval", run_name="__main__")
    assert seen == [{"distributed": True}, ["--model", "gpt_pjit"]]
    assert get_model("gpt_pjit") is GptPjitLM


def test_command_line(model, tmp_path):
    """lm-eval's own command line, alone and as two processes; a mistake is one message."""
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, LAMBADA)))
    files = json.dumps({"data_files": {"test": str(tmp_path / "data.jsonl")}})
    (tmp_path / "local.yaml").write_text(
        "task: last_words\noutput_type: loglikelihood\ndataset_path: json\ntest_split: test\n"
        f"dataset_kwargs: {files}\n"
        "doc_to_text: \"{{text.split(' ')[:-1]|join(' ')}}\"\n"
        "doc_to_target: \"{{' '+text.split(' ')[-1]}}\"\n"
        "metric_list:\n  - metric: perplexity\n"
    )
    alone = [sys.executable, "-m", "gpt_pjit.evaluate.lm_eval"]
    script = str(ROOT / "launch" / "local.sh")
    module = "--module=gpt_pjit.evaluate.lm_eval"
    together = [script, "--processes=2", "--devices=2", module, "--distributed"]

    def run(command, checkpoint, *flags):
        flags = (*flags, "--tasks", "last_words", "--include_path", str(tmp_path))
        flags = ("--model", "gpt_pjit", "--model_args", f"checkpoint={checkpoint}", *flags)
        environment = os.environ | {"PYTHON": sys.executable}
        return subprocess.run(
            [*command, *flags], cwd=ROOT, env=environment, capture_output=True, text=True,
            timeout=300,
        )  # fmt: skip

    found = []
    for name, command in (("alone", alone), ("together", together)):
        done = run(command, model, "--output_path", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
        (path,) = (tmp_path / name).rglob("results_*.json")  # of one process
        found.append(json.loads(path.read_text())["results"]["last_words"]["perplexity,none"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    wrong = run(alone, tmp_path / "nothing")
    assert wrong.returncode == EXIT_CONFIG
    assert "is no folder; give the --workdir of a run" in wrong.stderr
    assert "Traceback" not in wrong.stderr
