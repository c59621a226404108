"""Tasks of lm-eval, by our command and by lm-eval's own; and the model as lm-eval asks it."""

import dataclasses
import functools
import json
import math
import sys
import tomllib
from pathlib import Path

import jax
import pytest

from gpt_pjit.config import EvalConfig
from gpt_pjit.core.errors import EXIT_CONFIG, ConfigError
from gpt_pjit.data import train_bpe
from gpt_pjit.evaluate import texts
from gpt_pjit.evaluate.scorer import Scorer
from gpt_pjit.evaluate.tasks import prepare_jobs, tasks_in_run
from gpt_pjit.evaluate.texts import pages
from gpt_pjit.trained import load_trained
from tests.helpers import ROOT, make_workdir, tiny
from tests.processes import run

lm_eval = pytest.importorskip("lm_eval", reason="wants the extra `eval`")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.lm_eval,
    pytest.mark.filterwarnings("ignore"),  # of lm-eval and what it imports
]

SHARED = ROOT.parent / "shared/data"
DEFINITIONS = Path(lm_eval.__file__).parent / "tasks"
WINDOW = 320  # lm-eval generates 256 tokens where a task does not say
PIQA = [
    {"goal": f"Eat {i}", "sol1": f"a spoon and {i}", "sol2": f"a rock or {i % 3}"} for i in range(9)
]
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
GSM8K = [{"question": f"What is {i} and {i}?", "answer": f"#### {2 * i}"} for i in range(9)]
WIKITEXT = ' \n = One = \n \n It \'s a 2 @-@ way street . \n = Two = \n And the " end " . \n'
GROUP = {
    "group": "both",
    "task": ["piqa", "lambada_openai"],
    "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
}


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Published files of several tasks, small, each in a folder of its task's name."""
    files = {
        "piqa/valid.jsonl": lines(PIQA),
        "piqa/valid-labels.lst": "0\n1\n1\n" * 3,
        "piqa/train.jsonl": lines([record | {"label": 0} for record in PIQA]),
        "hellaswag/hellaswag_val.jsonl": lines(HELLASWAG),
        "winogrande/dev.jsonl": lines(WINOGRANDE),
        "lambada_openai/lambada_test.jsonl": lines(LAMBADA),
        "gsm8k/test.jsonl": lines(GSM8K),
        "wikitext/test.jsonl": lines({"page": page} for page in pages(WIKITEXT)),
        "wikitext2/wiki.test.raw": WIKITEXT,
    }
    folder = tmp_path_factory.mktemp("data")
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    return folder


@pytest.fixture(autouse=True)
def few_definitions(tmp_path_factory, monkeypatch):
    """An index of all of lm-eval's 14,000 tasks takes long; of these, and a group of two, not."""
    from lm_eval.tasks import TaskManager

    group = tmp_path_factory.mktemp("group")
    (group / "both.yaml").write_text(json.dumps(GROUP))
    names = ("piqa", "hellaswag", "winogrande", "lambada", "gsm8k", "wikitext")
    paths = [group, *(DEFINITIONS / name for name in names)]
    few = functools.partial(TaskManager, include_path=paths, include_defaults=False)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", few)
    return few


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A run with random parameters, and a BPE of texts like those that it is to read."""
    folder = tmp_path_factory.mktemp("lm_eval")
    texts = [Path(__file__).read_text(), (ROOT / "README.md").read_text()]
    train_bpe(texts, 1000, folder / "tokenizer.json")
    config = tiny(model={"vocab_size": 1024}, data={"sequence_length": WINDOW})
    make_workdir(folder / "run", config, (1, 2), str(folder / "tokenizer.json"))
    return folder / "run"


@pytest.fixture(scope="module")
def scorer(model):
    return Scorer(load_trained(model), rows=4)


@pytest.fixture
def evaluate(scorer, data_dir):
    """`evaluate(*names)`: what our command computes of them, with local data."""

    def run(*names, **options):
        results = {}
        for job in prepare_jobs(names, scorer, **{"data_dir": data_dir} | options):
            results |= job()
        return results

    return run


@pytest.fixture
def theirs(model, few_definitions, data_dir, tmp_path):
    """`theirs(definition, {split: file})`: lm-eval's own results on its definition and our data."""
    import gpt_pjit.evaluate.model  # noqa: F401  registers the model

    def run(definition, data_files, **flags):
        (tmp_path / "task.yaml").write_text(
            f"include: {DEFINITIONS / definition}\ntask: local\ndataset_path: json\n"
            f"dataset_name: null\ndataset_kwargs: {json.dumps({'data_files': data_files})}\n"
            + "".join(f"{kind}_split: null\n" for kind in ("test", "validation", "training"))
            + "".join(
                f"{'training' if split == 'train' else split}_split: {split}\n"
                for split in data_files
            )
        )
        found = lm_eval.simple_evaluate(
            model="gpt_pjit",
            model_args={"checkpoint": str(model)},
            tasks=["local"],
            task_manager=few_definitions.func(include_path=str(tmp_path), include_defaults=False),
            batch_size=4,
            bootstrap_iters=1000,
            **flags,
        )
        return found["results"]["local"], found["samples"]["local"]

    return run


@pytest.mark.parametrize(
    ("name", "definition", "metrics"),
    [
        ("hellaswag", "hellaswag/hellaswag.yaml", ("acc", "acc_norm")),
        ("winogrande", "winogrande/default.yaml", ("acc",)),
        ("lambada_openai", "lambada/lambada_openai.yaml", ("acc", "perplexity")),
        ("wikitext", "wikitext/wikitext.yaml", ("bits_per_byte", "word_perplexity")),
    ],
)
def test_a_task_gives_what_lm_eval_gives(name, definition, metrics, evaluate, theirs, data_dir):
    ours = evaluate(name)[name]
    split = "validation" if "acc_norm" in metrics or name == "winogrande" else "test"
    (file,) = (data_dir / name).iterdir()
    reported, _ = theirs(definition, {split: str(file)})
    assert set(metrics) <= set(ours.metrics)
    for metric in metrics:
        for kind in (metric, f"{metric}_stderr"):
            expected = reported[f"{kind},none"]
            assert ours.metrics[kind] == (None if expected == "N/A" else expected)
    assert ours.details["items"] == (2 if name != "lambada_openai" else 9)
    assert ours.details["num_fewshot"] == 0
    # Where each token scored is right, there is the distribution of their losses.
    assert ("nll_max" in ours.metrics) == (name in ("lambada_openai", "wikitext"))


def test_examples_and_limit_are_those_of_lm_eval(evaluate, theirs, data_dir, tmp_path):
    """The same examples in the same prompts, from the local training split."""
    labelled = tmp_path / "labelled.jsonl"
    labels = [0, 1, 1] * 3
    labelled.write_text(lines(r | {"label": n} for r, n in zip(PIQA, labels, strict=True)))
    files = {"validation": str(labelled), "train": str(data_dir / "piqa" / "train.jsonl")}
    reported, samples = theirs("piqa/piqa.yaml", files, num_fewshot=2, limit=4)
    ours = evaluate("piqa", num_fewshot=2, limit=4)["piqa"]
    assert ours.metrics["acc_norm"] == reported["acc_norm,none"]
    assert ours.details["items"] == len(samples) == 4
    assert ours.details["num_fewshot"] == 2
    assert all(sample["arguments"][0][0].count("Question:") == 3 for sample in samples)
    again, other = (evaluate("piqa", num_fewshot=n, limit=0.4)["piqa"] for n in (2, 1))
    assert again.details["data"] == ours.details["data"]  # 0.4 of 9, rounded up
    assert other.details["data"] != ours.details["data"]


def test_a_group_reads_the_same_local_data(evaluate):
    found = evaluate("both")
    assert set(found) == {"both", "piqa", "lambada_openai"}
    alone = evaluate("piqa")["piqa"]
    assert found["piqa"].metrics == alone.metrics
    acc = [found[name].metrics["acc"] for name in ("piqa", "lambada_openai")]
    assert found["both"].metrics["acc"] == pytest.approx(sum(acc) / 2)  # of nine items each


def test_tasks_that_generate(evaluate):
    found = evaluate("gsm8k", num_fewshot=0, limit=1)["gsm8k"]
    assert found.metrics["exact_match,flexible-extract"] == 0


def test_a_run_scores_its_newest_weights(model, data_dir):
    """With log-likelihoods and with texts, by the jobs that it prepared at its start."""
    tasks = {"tasks": ("wikitext", "gsm8k"), "tasks_limit": 1, "tasks_data_dir": str(data_dir)}
    trained = [load_trained(model / "checkpoints" / str(step)) for step in (1, 2)]
    config = dataclasses.replace(trained[0].config, eval=EvalConfig(**tasks))
    score = tasks_in_run(trained[0].model, trained[0].tokenizer, config, iter)
    bits = []
    for of_step in trained:
        with jax.set_mesh(of_step.mesh):
            found = score(of_step.weights)
        assert found["evaluation/gsm8k/exact_match_flexible-extract"] == 0
        bits.append(found["evaluation/wikitext/bits_per_byte"])
        (job,) = prepare_jobs(["wikitext"], Scorer(of_step), data_dir=data_dir, limit=1)
        expected = job()["wikitext"].metrics["bits_per_byte"]
        assert bits[-1] == pytest.approx(expected, rel=1e-6)
    assert abs(bits[0] - bits[1]) > 1e-3


def test_wikitext2_is_the_text_of_wikitext(evaluate, monkeypatch):
    """In our windows, with a standard error, and in bytes of the text as published."""
    monkeypatch.setattr(texts, "_check_published", lambda *_: None)
    found = evaluate("wikitext2", "wikitext")
    for metric in ("bits_per_byte", "word_perplexity", "byte_perplexity"):
        theirs = found["wikitext"].metrics[metric]
        assert found["wikitext2"].metrics[metric] == pytest.approx(theirs, rel=1e-9)
    assert found["wikitext2"].metrics["bits_per_byte_stderr"] > 0
    assert found["wikitext2"].details["bytes"] == len(WIKITEXT) - 3


@pytest.mark.shared_data
@pytest.mark.skipif(not (SHARED / "wikitext2").exists(), reason="wants ../shared/data")
def test_wikitext2_has_its_published_size(scorer):
    texts._check_published(
        "wikitext2", SHARED, (SHARED / "wikitext2" / "wiki.test.raw").read_bytes()
    )
    raw = (SHARED / "wikitext2" / "wiki.test.raw").read_text(encoding="utf-8")
    found = pages(raw)
    assert len(found) == 62
    assert sum(len(page.encode()) for page in found) == 1_290_590 - 2 - 61


def test_what_is_wrong_with_tasks_is_one_message(evaluate, scorer, data_dir, tmp_path, monkeypatch):
    good = WINOGRANDE[0] | {"sentence": "A\u2028 _ b"}
    for content, words in {
        lines([good, {"sentence": 1}]): r"winogrande: its data give no prompts: ",
        lines([good])[:-9]: r"dev.jsonl does not hold one JSON record per line: JSONDecodeError",
        "[" * 1100: r"dev.jsonl does not hold one JSON record per line: RecursionError",
        "3": r"dev.jsonl does not hold one JSON record per line: TypeError",
    }.items():
        (tmp_path / "winogrande").mkdir(exist_ok=True)
        (tmp_path / "winogrande" / "dev.jsonl").write_text(content, encoding="utf-8")
        with pytest.raises(ConfigError, match=words):
            evaluate("winogrande", data_dir=tmp_path)
    (tmp_path / "winogrande" / "dev.jsonl").write_text(lines([good]), encoding="utf-8")
    assert evaluate("winogrande", data_dir=tmp_path)["winogrande"].details["items"] == 1
    (tmp_path / "winogrande" / "val.jsonl").write_text(lines([good]))
    with pytest.raises(ConfigError, match=r"dev.jsonl and val.jsonl both match split valid"):
        evaluate("winogrande", data_dir=tmp_path)
    (tmp_path / "winogrande" / "val.jsonl").rename(tmp_path / "winogrande" / "some.jsonl")
    (tmp_path / "winogrande" / "dev.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"has no .jsonl file named after train or validation"):
        evaluate("winogrande", data_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"2 problems:\n  piqas is neither .*\n  hellaswag can"):
        evaluate("piqas", "hellaswag", data_dir=None)  # there is no network
    monkeypatch.setattr(Scorer, "score", None)
    with pytest.raises(ConfigError, match=r"piqa: a continuation of \d+ tokens is longer than"):
        prepare_jobs(["piqa"], Scorer(scorer.trained, window=2), data_dir=data_dir)


def test_entry_point_is_the_model():
    """By it, releases after 0.4.13 find the model; group and form are of lm-eval's plugin guide."""
    from importlib.metadata import EntryPoint

    from gpt_pjit.evaluate.model import GptPjitLM

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ((name, value),) = project["entry-points"]["lm_eval.models"].items()
    assert EntryPoint(name, value, "lm_eval.models").load() is GptPjitLM
    assert name == "gpt_pjit"


@pytest.fixture(scope="module")
def lm(model):
    from gpt_pjit.evaluate.model import GptPjitLM

    return GptPjitLM(str(model))


def instances(kind, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, pair, number) for number, pair in enumerate(arguments)]


@pytest.fixture(scope="module")
def merging(tmp_path_factory):
    """A run whose tokens may span words, and its tokenizer's file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("merging")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ["know,\u201d replied Amber", "I do know,\u201d replied Amber then", "a b c"]
    tokenizer.train_from_iterator(texts * 9, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = tiny(model={"vocab_size": 512}, data={"sequence_length": 32})
    make_workdir(folder / "run", config, tokenizer=str(folder / "tokenizer.json"))
    return folder


PAIRS = [
    ("know,\u201d replied", " Amber"),
    ("I do know,\u201d replied", " Amber"),
    ("I do know,\u201d replied", " Amber then some"),
    ("I do kn", "ow it"),
    ("a b ", "c"),
    ("what else", " is there"),
    ("", "know"),
]


@pytest.mark.hf
def test_tokens_that_span_the_end_of_the_context_are_scored(merging):
    """As in lm-eval's `hf` backend, which fails where such a token leaves no others."""
    transformers = pytest.importorskip("transformers")
    from lm_eval.api.registry import get_model

    from gpt_pjit.evaluate.model import GptPjitLM

    ours = GptPjitLM(str(merging / "run"))
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=512)
    theirs = get_model("hf")(
        pretrained=transformers.GPT2LMHeadModel(config),
        tokenizer=transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(merging / "tokenizer.json"),
            eos_token="<|endoftext|>",  # noqa: S106
        ),
        device="cpu",
    )
    wanted = instances("loglikelihood", *PAIRS)
    theirs._loglikelihood_tokens = lambda requests, **_: requests
    empty = 0
    for (pair, context, continuation), request in zip(
        theirs.loglikelihood(wanted), ours._requests(wanted), strict=True
    ):
        if not continuation:
            empty += 1
            spaces = pair[0][len(pair[0].rstrip()) :]  # they belong to the continuation
            continuation = theirs.tok_encode(spaces + pair[1])
        assert request.tokens == (*context, *continuation)
        assert request.scored == len(continuation)
    assert empty >= 2
    assert all(math.isfinite(value) for value, _ in ours.loglikelihood(wanted))


def test_a_task_with_such_tokens_is_scored_whole(merging, tmp_path):
    (tmp_path / "lambada_openai").mkdir()
    records = lines({"text": context + word} for context, word in PAIRS[:2])
    (tmp_path / "lambada_openai" / "test.jsonl").write_text(records)
    scorer = Scorer(load_trained(merging / "run"))
    (job,) = prepare_jobs(["lambada_openai"], scorer, data_dir=tmp_path)
    result = job()["lambada_openai"]
    assert result.details["items"] == 2
    assert result.metrics["perplexity"] > 1


def test_a_cache_of_answers_belongs_to_a_checkpoint(model, lm, tmp_path, monkeypatch):
    """Also to a window and a dtype; and what it holds is not computed again."""
    from lm_eval.api.model import CachingLM

    from gpt_pjit.evaluate.model import GptPjitLM

    wanted = instances("loglikelihood", ("one two " * 9, " three"), ("a", " b"))
    other = GptPjitLM(str(model / "checkpoints" / "1"))
    expected = [one.loglikelihood(wanted) for one in (lm, other)]
    assert expected[0] != expected[1]
    short = GptPjitLM(str(model), window=6)
    for one, answers in ((lm, expected[0]), (other, expected[1])):
        assert CachingLM(one, str(tmp_path / "cache.db")).loglikelihood(wanted) == answers
    assert CachingLM(short, str(tmp_path / "cache.db")).loglikelihood(wanted) != expected[0]
    monkeypatch.setattr(GptPjitLM, "loglikelihood", None)
    for one, answers in ((lm, expected[0]), (other, expected[1])):
        assert CachingLM(one, str(tmp_path / "cache.db")).loglikelihood(wanted) == answers


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
    from gpt_pjit.evaluate.model import GenerationOptions, generation_options
    from gpt_pjit.generate import Sampling

    greedy, window = Sampling(0.0), 300
    options = GenerationOptions(256, greedy, ())
    assert generation_options({"do_sample": False, "temperature": 1}, window) == options
    assert generation_options({"max_gen_toks": None, "max_tokens": 9}, window).max_new_tokens == 9
    assert generation_options({"until": ["", "."]}, window).stop == (".",)
    assert generation_options({"do_sample": True}, window).sampling == Sampling(1.0)
    sampled = {"temperature": 0.5, "top_k": 4, "top_p": 0.9}
    assert generation_options(sampled, window).sampling == Sampling(0.5, 4, 0.9)
    assert not [record for record in caplog.records if "ignores" in record.message]
    assert generation_options({"num_beams": 2}, window) == options
    assert "generation ignores num_beams=2" in caplog.text


def test_prompts_have_room_or_it_is_said(lm, caplog):
    long = "one and two and " * 500
    lm.generate_until(instances("generate_until", (long, {"max_gen_toks": 8})))
    assert f"1 of 1 prompts are cut from the left to {WINDOW - 8} tokens" in caplog.text
    with pytest.raises(ConfigError, match=rf"max_gen_toks={WINDOW} leaves no room .* {WINDOW} "):
        lm.generate_until(instances("generate_until", ("a", {"max_gen_toks": WINDOW})))


def test_batches_of_generation_are_as_large_as_asked(lm, monkeypatch):
    """As many sequences as take the memory of `batch_size` full windows on each device."""
    import gpt_pjit.evaluate.model as module

    sizes = []
    stream = module.stream

    def spied(*arguments, batch_size):
        sizes.append(batch_size)
        return stream(*arguments, batch_size=batch_size)

    monkeypatch.setattr(module, "stream", spied)
    lm.generate_until(instances("generate_until", ("once" * 10, {"max_gen_toks": 20})))
    length = len(lm.tok_encode("once" * 10)) + 20
    assert sizes == [WINDOW // length * lm.trained.mesh.shape["data"]]


def test_mistakes_are_one_message(model, lm):
    from gpt_pjit.evaluate.model import GptPjitLM

    with pytest.raises(TypeError, match="unexpected keyword argument 'windw'"):
        GptPjitLM(str(model), windw=5)
    assert GptPjitLM(str(model), batch_size="auto:4").scorer.rows == 1
    (spaces, empty) = lm.loglikelihood(instances("loglikelihood", (" ", "yes"), ("", " yes")))
    assert spaces == empty
    with pytest.raises(ConfigError, match="the continuation '' of 'yes' has no tokens"):
        lm.loglikelihood(instances("loglikelihood", ("yes", "")))


def test_the_module_that_runs_registers_the_class_of_the_entry_point(monkeypatch):
    """One class for both ways in, or lm-eval finds the name taken."""
    import runpy

    import lm_eval.__main__
    from lm_eval.api.registry import get_model

    from gpt_pjit.evaluate.model import GptPjitLM

    seen = []
    monkeypatch.setattr("gpt_pjit.trained.start_devices", lambda **options: seen.append(options))
    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", lambda: seen.append(sys.argv[1:]))
    monkeypatch.setattr(sys, "argv", ["lm_eval", "--distributed", "--model", "gpt_pjit"])
    monkeypatch.delitem(sys.modules, "gpt_pjit.evaluate.lm_eval", raising=False)
    runpy.run_module("gpt_pjit.evaluate.lm_eval", run_name="__main__")
    assert seen == [{"distributed": True}, ["--model", "gpt_pjit"]]
    assert get_model("gpt_pjit") is GptPjitLM


def test_command_line(model, data_dir, tmp_path, monkeypatch, capsys):
    """lm-eval's own command, alone and as two processes; a mistake is one message."""
    from gpt_pjit.evaluate import lm_eval as command

    data_files = {"test": str(data_dir / "lambada_openai" / "lambada_test.jsonl")}
    (tmp_path / "local.yaml").write_text(
        f"include: {DEFINITIONS / 'lambada/lambada_openai.yaml'}\ntask: last_words\n"
        f"dataset_path: json\ndataset_name: null\n"
        f"dataset_kwargs: {json.dumps({'data_files': data_files})}\n"
    )

    def flags(checkpoint, out):
        return [
            *("--model", "gpt_pjit", "--model_args", f"checkpoint={checkpoint}"),
            *("--tasks", "last_words", "--include_path", str(tmp_path), "--output_path", str(out)),
        ]

    def perplexity(out):
        (path,) = out.rglob("results_*.json")  # of one process
        return json.loads(path.read_text())["results"]["last_words"]["perplexity,none"]

    monkeypatch.setattr(command, "start_devices", lambda **_: None)
    monkeypatch.setattr(sys, "argv", ["lm_eval", *flags(model, tmp_path / "alone")])
    command.main()
    together = ["launch/local.sh", "--processes=2", "--devices=2", "--distributed"]
    together += ["--module=gpt_pjit.evaluate.lm_eval", f"--use_cache={tmp_path}/cache"]
    done = run([*together, *flags(model, tmp_path / "together")])
    assert done.returncode == 0, done.stderr
    alone = perplexity(tmp_path / "alone")
    assert perplexity(tmp_path / "together") == pytest.approx(alone, rel=1e-5)
    monkeypatch.setattr(sys, "argv", ["lm_eval", *flags(tmp_path / "nothing", tmp_path)])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == EXIT_CONFIG
    assert "is not a folder; give the --workdir of a run" in capsys.readouterr().err


def test_two_processes_score_a_task_as_one_does(model, data_dir, evaluate, tmp_path):
    flags = ["--processes=2", "--devices=2", "--module=gpt_pjit.evaluate"]
    flags += [f"--checkpoint={model}", "--tasks=piqa,lambada_openai", f"--data_dir={data_dir}"]
    flags += [f"--out={tmp_path}", "--limit=8"]
    done = run(["launch/local.sh", *flags])
    assert done.returncode == 0, done.stderr
    together = json.loads((tmp_path / "results.json").read_text())
    for name, result in evaluate("piqa", "lambada_openai", limit=8).items():
        for metric, value in result.metrics.items():
            assert together[name][metric] == pytest.approx(value, rel=1e-5), metric
        assert together["settings"]["tasks"][name]["data"] == result.details["data"]
