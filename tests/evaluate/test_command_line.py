"""The command: its outputs, comparisons, and mistakes in one message."""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpt_pjit.errors import EXIT_CONFIG, ConfigError
from gpt_pjit.evaluate import __main__ as command, sources
from gpt_pjit.evaluate.report import comparison_rows
from gpt_pjit.evaluate.sources import Source, read_data

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
    markdown = (tmp_path / "out" / "results.md").read_text()
    assert "| GPT-580M (published) | 0.9547 | 66.80 % |  |" in markdown
    assert "| mine | " in markdown
    assert "| run | " in markdown
    assert "training log of the 580M run" in " ".join(shown.split())
    assert "file:" in shown


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
    error = failure(evaluate, capsys, "--tasks=", "--rows=0", "--dtype=int8")
    assert "flags has 3 problems" in error
    error = failure(evaluate, capsys, f"--tasks=file:{__file__}", "--stride=99")
    assert "stride=99: must be between 1 and the window, 32; try 16" in error
    assert "needs a file: text8 of http" in failure(evaluate, capsys, "--tasks=text8")
    assert "--help lists all flags" in failure(evaluate, capsys, "--task=text8", "--bogus")


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


def test_compare_wants_results(tmp_path):
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"2 problems:(.|\n)*give the results.json"):
        comparison_rows([str(tmp_path / "other.json"), "nothing.json"], ["piqa"])
    names = [row.name for row in comparison_rows(["published"], ["enwik8"])]
    assert names == ["GPT-580M", "GPT2-Medium (paper)", "GPT2-Large (paper)"]
    assert comparison_rows(["published"], ["winogrande"]) == []


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
