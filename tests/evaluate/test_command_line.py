"""The command: its outputs, comparisons, and mistakes in one message."""

import dataclasses
import hashlib
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpt_pjit.core.errors import EXIT_CONFIG, EXIT_INTERRUPTED, ConfigError
from gpt_pjit.evaluate import __main__ as command, progress, sources
from gpt_pjit.evaluate.choices import read_items
from gpt_pjit.evaluate.report import Table, comparison_rows, markdown_table, notes
from gpt_pjit.evaluate.results import read_results, row_of
from gpt_pjit.evaluate.scorer import Scorer
from gpt_pjit.evaluate.sources import Source, read_data
from gpt_pjit.evaluate.tasks import prepare_tasks
from tests.helpers import without_reader

TEXT = "The first page has several words, and so has the second one.\n" * 4
PIQA = [
    {"goal": "Eat", "sol1": "a spoon", "sol2": "a rock"},
    {"goal": "Go", "sol1": "on", "sol2": "not"},
]


@pytest.fixture
def evaluate(workdir, monkeypatch, capsys):
    """`evaluate(*flags)`: standard output; the test's own devices are used."""
    monkeypatch.setattr(command, "start_devices", lambda **_: None)

    def run(*flags):
        command.main([f"--checkpoint={workdir}", *flags])
        return capsys.readouterr().out

    return run


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """Small files in place of the published ones, whose hashes are known."""
    contents = {
        "wikitext2": {"wiki.test.raw": f" \n = One = \n \n{TEXT} = Two = \n{TEXT}"},
        "piqa": {
            "valid.jsonl": "\n".join(map(json.dumps, PIQA)),
            "valid-labels.lst": "0\n1\n",
        },
    }
    for task, files in contents.items():
        (tmp_path / task).mkdir()
        for name, text in files.items():
            (tmp_path / task / name).write_text(text)
        hashes = {n: f"sha256:{hashlib.sha256(t.encode()).hexdigest()}" for n, t in files.items()}
        monkeypatch.setitem(sources.SOURCES, task, Source(hashes, f"http://{task}"))
    return tmp_path


def test_json_markdown_and_comparison(evaluate, data_dir, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT * 3)
    tasks = f"--tasks=wikitext2,piqa,file:{text},lengths:file:{text}"
    common = (tasks, f"--data_dir={data_dir}", "--stride=16", f"--out={tmp_path / 'out'}")
    record = json.loads(evaluate(*common, "--json"))
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == record
    settings = record.pop("settings")
    assert set(record) == {"wikitext2", "piqa", f"file:{text}", f"lengths:file:{text}"}
    assert set(record["piqa"]) == {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr"}
    assert {"bits_per_byte", "bits_per_byte_stderr"} < set(record["wikitext2"])
    assert settings["step"] == 4
    details = settings["tasks"]
    assert details["wikitext2"]["data"]["checked"]
    assert not details[f"file:{text}"]["data"]["checked"]
    assert details[f"file:{text}"]["bytes"] == text.stat().st_size
    assert details["wikitext2"]["stride"] == 16
    raw = (data_dir / "wikitext2" / "wiki.test.raw").read_bytes()
    assert details["wikitext2"]["bytes"] == len(raw) - 3  # blank start, and one line end

    other = f"--compare=published,{tmp_path / 'out' / 'results.json'}"
    shown = evaluate(*common, other, "--name=mine")
    lines = (tmp_path / "out" / "results.md").read_text().splitlines()
    models = "| mine | GPT2-Medium (published) | GPT-580M (published) | GPT2-Large (published) |"
    assert f"| task | metric {models} run |" in lines
    mine = [line.split(" | ") for line in lines if line.startswith("| wikitext2 | bits_per_byte")]
    assert mine[0][3:6] == ["1.0003", "0.9547", "0.9578"]
    assert mine[0][2] + " |" == mine[0][6]
    assert " ± " in mine[0][2]
    assert "training log of the 580M run" in " ".join(shown.split())
    assert "file:" in shown


def test_what_is_scored_is_not_lost_when_a_later_task_fails(
    evaluate, monkeypatch, tmp_path, capsys
):
    text, other = tmp_path / "text.txt", tmp_path / "other.txt"
    text.write_text(TEXT)
    other.write_text(TEXT)
    score = Scorer.score

    def fail(scorer, requests, task):
        if "other" in task:
            raise RuntimeError("RESOURCE_EXHAUSTED")
        return score(scorer, requests, task)

    monkeypatch.setattr(Scorer, "score", fail)
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        evaluate(f"--tasks=file:{text},file:{other}", f"--out={tmp_path / 'out'}")
    row = read_results(tmp_path / "out" / "results.json")
    assert list(row.results) == [f"file:{text}"]
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert files == ["results.json", "results.md"]
    assert "bits_per_byte" in capsys.readouterr().out


def test_pieces_of_text_are_code_in_markdown():
    rows = [("1", "'<b>|*'"), ("2", "'a `` b'")]
    table = markdown_table(Table("t", ("nats", "token"), rows, code=(1,)))
    assert table.splitlines()[2:] == ["| 1 | `'<b>\\|*'` |", "| 2 | ``` 'a `` b' ``` |"]


def test_a_reader_that_has_enough_is_no_error(workdir, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    flags = [f"--checkpoint={workdir}", f"--tasks=file:{tmp_path / 'text.txt'}"]
    command = [sys.executable, "-m", "gpt_pjit.evaluate", *flags]
    assert without_reader(command) == (0, "")


def test_progress_begins_with_nothing_done(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with progress.counting("task", 3) as advance:
        advance(0)
        advance(1)
        advance(2)
    assert re.fullmatch(r"task: 1 of 3, \d+ s left\n", capsys.readouterr().err)


def test_the_tables_name_the_run_that_an_average_lies_in(workdir, tmp_path):
    (tmp_path / "run").symlink_to(workdir)
    shutil.copytree(workdir, workdir / "averaged")
    assert command._name(workdir / "averaged") == "run/averaged"
    assert command._name(workdir) == "run"


def test_checkpoint_of_one_step(evaluate, workdir, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    flags = (f"--checkpoint={workdir}/checkpoints/2", f"--tasks=file:{text}", "--json")
    assert json.loads(evaluate(*flags))["settings"]["step"] == 2


def failure(evaluate, capsys, *flags):
    with pytest.raises(SystemExit) as stop:
        evaluate(*flags)
    assert stop.value.code == EXIT_CONFIG
    return capsys.readouterr().err


def test_all_mistakes_at_once(evaluate, data_dir, capsys):
    (data_dir / "wikitext2" / "wiki.test.raw").write_text("cut")
    (data_dir / "piqa" / "valid-labels.lst").unlink()
    tasks = "--tasks=wikitext2,piqa,boolq,file:nothing.txt,text8"
    error = failure(evaluate, capsys, tasks, f"--data_dir={data_dir}")
    assert "--tasks has 5 problems" in error
    assert "wiki.test.raw has sha256 " in error
    assert "or score it as file:" in error
    assert "piqa: no valid-labels.lst" in error
    assert "it is in http://piqa" in error
    assert "tasks='boolq': no such task; known: wikitext2, text8" in error
    assert "nothing.txt cannot be read: No such file" in error
    assert "it is in http://mattmahoney.net/dc/text8.zip" in error


def test_flags_are_checked(evaluate, capsys):
    task = f"--tasks=file:{__file__}"
    wrong = {
        "--tasks=,": "',' names no task; known: wikitext2",
        "--rows=0": "'0' is no number from 1 on",
        "--dtype=int8": "invalid choice: 'int8'",
        "--stride=99": "stride=99: must be between 1 and the window, 32; try 16",
        "--tasks=text8": "needs a file: text8 of http",
        "--bogus": "--help lists all flags",
        f"--out={__file__}": f"out='{__file__}': cannot be written: File exists; name a folder",
    }
    for flag, words in wrong.items():
        assert words in failure(evaluate, capsys, task, flag)


def test_ctrl_c_is_no_traceback(evaluate, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "load_trained", interrupted)
    with pytest.raises(SystemExit) as stop:
        evaluate(f"--tasks=file:{__file__}")
    assert stop.value.code == EXIT_INTERRUPTED
    assert capsys.readouterr().err == "\nstopped\n"


def test_nothing_is_scored_before_all_inputs_are_found_right(
    evaluate, trained, monkeypatch, data_dir, capsys
):
    def score(*_):
        raise AssertionError("scored")

    monkeypatch.setattr(command, "load_trained", lambda *_, **__: trained)
    monkeypatch.setattr(Scorer, "score", score)
    (data_dir / "short.txt").write_text("short")
    (data_dir / "empty.txt").write_text("")
    files = [f"file:{data_dir / name}.txt" for name in ("short", "empty")]
    tasks = [files[0], f"lengths:{files[0]}", files[1], "piqa"]
    flags = (f"--tasks={','.join(tasks)}", f"--data_dir={data_dir}", "--window=6")
    error = failure(evaluate, capsys, *flags)
    assert "--tasks has 3 problems" in error
    assert "short.txt needs a document of 128 tokens" in error
    assert "empty.txt holds no text" in error
    assert "piqa: 2 of 4 continuations to be scored are longer than the window of 6" in error
    assert "the longest has 8; set window=8" in error


def test_files_of_another_data_set_are_one_message(tmp_path):
    """Only Winogrande's has no hash; its folder comes before a file of the same name beside it."""
    (tmp_path / "dev.jsonl").write_text("beside")
    (tmp_path / "winogrande").mkdir()
    good = {"sentence": "A\u2028 _ b", "option1": "x", "option2": "y", "answer": "1"}
    good = json.dumps(good, ensure_ascii=False)
    for content, words in {
        f"{good}\n{{}}": r"dev.jsonl, line 2, is no item of winogrande \(KeyError: 'sentence'\)",
        f"{good}\n{good[:-9]}": r"dev.jsonl, line 2, is no JSON",
        "": r"dev.jsonl, line 1, is no JSON",
    }.items():
        (tmp_path / "winogrande" / "dev.jsonl").write_text(content, encoding="utf-8")
        with pytest.raises(ConfigError, match=words):
            prepare_tasks(["winogrande"], tmp_path)
    (tmp_path / "winogrande" / "dev.jsonl").write_text(good, encoding="utf-8")
    assert prepare_tasks(["winogrande"], tmp_path)
    with pytest.raises(ConfigError, match=r"the hub holds no items of piqa"):
        read_items([], "piqa", "the hub")


def test_the_hub_is_read_at_a_pinned_revision(monkeypatch):
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        if "hellaswag" in arguments[0]:
            raise ConnectionError("no network\nand more")
        return [{"text": "one two"}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    data = read_data("lambada", None)
    assert data.rows == [{"text": "one two"}]
    (arguments, options) = asked[0]
    assert arguments == ("EleutherAI/lambada_openai", "default")
    assert options["split"] == "test"
    assert len(options["revision"]) == 40
    assert data.origin["hub"] == f"EleutherAI/lambada_openai@{options['revision']}"
    with pytest.raises(ConfigError, match=r"no network; check the network, or give --data_dir"):
        read_data("hellaswag", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"needs the package `datasets`: pip install"):
        read_data("piqa", None)


def test_learned_positions_are_said_before_anything_is_computed(
    evaluate, trained, monkeypatch, capsys
):
    model = dataclasses.replace(trained.config.model, positions="learned")
    config = dataclasses.replace(trained.config, model=model)
    learned = dataclasses.replace(trained, config=config)
    monkeypatch.setattr(command, "load_trained", lambda *_, **__: learned)
    error = failure(evaluate, capsys, f"--tasks=file:{__file__},lengths:file:{__file__}")
    assert "model.positions is learned and holds 32 positions, none after them" in error
    assert "models with alibi positions read longer texts" in error


def test_results_of_another_window_or_text_are_not_to_be_compared(tmp_path):
    def settings(name, **details):
        tasks = {"text8": details, "piqa": {"window": 32}}
        return {"name": name, "step": 1, "checkpoint": "c", "dtype": "float32", "tasks": tasks}

    common = {"window": 1024, "stride": 512, "data": {"sha256": "ab"}}
    mine = {"text8": {"bits_per_byte": 1.0}, "piqa": {}, "settings": settings("mine", **common)}
    paths = []
    for number, other in enumerate(({}, {"stride": 1024}, {"data": {"sha256": "cd"}})):
        record = mine | {"settings": settings(f"other{number}", **common | other)}
        paths.append(str(tmp_path / f"{number}.json"))
        Path(paths[-1]).write_text(json.dumps(record))
    others = comparison_rows(paths, ["text8"])
    lines = [line for line in notes(row_of(mine), others) if "WARN" in line]
    assert lines == [
        f"WARNING, text8: other1 of {paths[1]} is not to be compared: stride 1,024, here 512",
        f"WARNING, text8: other2 of {paths[2]} is not to be compared: other data",
    ]


def test_compare_wants_results(tmp_path):
    settings = {"name": "m", "tasks": {"piqa": {}}}
    wrong = {
        "[]": "it has no settings with a name",
        json.dumps({"piqa": {"acc": 1}, "settings": settings | {"tasks": []}}): "do not explain pi",
        json.dumps({"piqa": "x", "settings": settings}): r"piqa is not of the form \{metric: num",
        json.dumps({"piqa": {"acc": "x"}, "settings": settings}): "piqa is not of the form",
    }
    path = tmp_path / "other.json"
    for content, words in wrong.items():
        path.write_text(content)
        with pytest.raises(ConfigError, match=words):
            read_results(path)
    with pytest.raises(ConfigError, match=r"2 problems:(.|\n)*No such file.*or .* `published`"):
        comparison_rows([str(path), "publised"], ["piqa"])
    with pytest.raises(ConfigError, match=r"none of the published models has these .*text8, wik"):
        comparison_rows(["published"], ["winogrande"])
    names = [row.name for row in comparison_rows(["published"], ["enwik8"])]
    assert names == ["GPT-580M", "GPT2-Medium (paper)", "GPT2-Large (paper)"]


WIKITEXT = Path(__file__).parents[3] / "shared/data/wikitext2/wiki.test.raw"


@pytest.mark.shared_data
@pytest.mark.skipif(not WIKITEXT.exists(), reason="wants ../shared/data")
def test_wikitext_has_its_published_size():
    from gpt_pjit.evaluate.wikitext import pages

    data = read_data("wikitext2", WIKITEXT.parent)
    found = pages(data.contents["wiki.test.raw"].decode())
    assert data.origin["checked"]
    assert len(found) == 62
    assert sum(len(page.encode()) for page in found) == 1_290_590 - 2 - 61
