"""`python -m gpt_pjit.partition`: what a person, and a program, reads."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from gpt_pjit.core.errors import EXIT_CONFIG
from gpt_pjit.core.sharding import gpt_rules
from tests.helpers import ROOT, without_reader

CONFIG = ("--config=configs/580m.py", "--devices=32")
HEAVY = {"grain", "orbax", "tensorboardX", "tensorstore", "tokenizers", "torch"}


def python(*arguments):
    command = [sys.executable, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=120, env=environment
    )


def partition(*arguments):
    return python("-m", "gpt_pjit.partition", *arguments)


def test_explain_shows_parameters_totals_rules_and_what_moves():
    result = partition("explain", *CONFIG)
    assert result.returncode == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 100
    for words in (
        "Parameters on data 32, layout zero",
        "L18 D1536 C3 H12 K128",
        "18x48x3x12x128",
        "rule 1",
        "15.2 MiB",
        "(None, 'data', 'tensor')",
        "gather weights, once",
    ):
        assert words in result.stdout


def test_explain_writes_a_page_that_loads_nothing(tmp_path):
    path = tmp_path / "page.html"
    result = partition("explain", *CONFIG, "--config.mesh.tensor=2", f"--html={path}", "--json")
    assert result.returncode == 0, result.stderr
    record, text = json.loads(result.stdout), path.read_text()
    assert len(record["parameters"]) == 8
    assert record["bytes_a_device"]["stored"] == 73_586_688
    assert not [word for word in ("http", "src=", "@import", "url(") if word in text]
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert list(data) == list(record["parameters"])
    tree = data["blocks/mlp/up/kernel"]["trees"]["stored"]
    assert tree["parts"] == [1, 16, 2]
    assert tree["devices"][:3] == [[0, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_explain_why_tells_of_each_rule():
    result = partition("explain", *CONFIG, "--why=blocks/norm_mlp/scale", "--json")
    trials = json.loads(result.stdout)
    assert [trial["verdict"] for trial in trials] == ["no match"] * 5 + ["taken", "no match"]


def test_lint_exits_78_on_errors_of_all_tables():
    result = partition(
        "lint",
        *CONFIG,
        "--config.model.vocab_size=50257",
        "--config.optim.lr_rules=(('blocks/.*', 0.5),)",
        "--config.optim.weight_decay=0.2",
    )
    assert result.returncode == EXIT_CONFIG, result.stderr
    assert "no rule matches it" in result.stdout
    assert "optim.lr_rules" in result.stdout
    result = partition("lint", *CONFIG, "--config.mesh.tensor=5", "--devices=160")
    assert result.returncode == EXIT_CONFIG
    assert "dimension 1 of shape (18, 12, 128, 1536) is 12" in result.stdout.replace("\n", " ")


def test_lint_exits_0_without_errors(tmp_path):
    result = partition("lint", *CONFIG)
    assert (result.returncode, result.stdout) == (0, "no findings\n")
    rules = (("embed/.*", ("tensor", "data")), *gpt_rules(bias=False, positions="alibi")[1:])
    config = tmp_path / "mine.py"
    text = (ROOT / "configs" / "580m.py").read_text()
    config.write_text(text.replace("return c", f"c.partition.rules = {rules}\n    return c"))
    result = partition("lint", f"--config={config}", "--devices=32", "--json")
    assert result.returncode == 0, result.stderr
    (finding,) = json.loads(result.stdout)
    assert (finding["severity"], finding["kind"], finding["rule"]) == ("warning", "catch-all", 0)


def test_diff_of_two_layouts_of_one_config():
    result = partition("diff", *CONFIG, "--against.partition.layout=zero1")
    assert result.returncode == 0, result.stderr
    assert "partition.layout: 'zero1' -> 'zero'" in result.stdout
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "stored 2.19 GiB 70.2 MiB -2.12 GiB" in lines
    assert "gather weights, once 0 B 1.06 GiB +1.06 GiB" in lines
    assert "gather updated parameters 2.12 GiB 0 B -2.12 GiB" in lines


def test_a_lock_tells_of_a_renamed_parameter_and_how_to_accept_it(tmp_path):
    config = shutil.copy(ROOT / "configs" / "580m.py", tmp_path)
    flags = ("lock", f"--config={config}", "--devices=32")
    assert "no such file; write it" in partition(*flags).stderr
    assert partition(*flags, "--write").returncode == 0
    assert partition(*flags).returncode == 0
    lock = tmp_path / "locks" / "580m.data32.zero.lock"
    lock.write_text(lock.read_text().replace("blocks/mlp/up/kernel", "blocks/mlp/gate/kernel"))
    result = partition(*flags)
    assert result.returncode == 1, result.stderr
    assert (
        f"python -m gpt_pjit.partition lock --config={config} --devices=32 --write" in result.stdout
    )
    for path in ("blocks/mlp/up/kernel", "blocks/mlp/gate/kernel"):
        assert path in result.stdout
    assert result.stdout.count("no such parameter") == 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("explian", *CONFIG), "no command 'explian'; one of explain, lint, diff, lock"),
        (("explain", CONFIG[0]), "try --devices=32"),
        (("explain", *CONFIG, "--config.mesh.tensor=5"), "sizes that work divide 32"),
        (("explain", *CONFIG, "--why=blocks/mlp/up"), "did you mean blocks/mlp/up/kernel"),
        (("explain", *CONFIG, "--html=none/page.html"), "html='none/page.html': cannot be written"),
        (("diff", *CONFIG, "--against=none.py"), "--against has 1 problem"),
    ],
    ids=str,
)
def test_mistakes_end_with_one_message_and_exit_78(arguments, words):
    result = partition(*arguments)
    assert result.returncode == EXIT_CONFIG, result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert "Unable to initialize backend" not in result.stderr


def test_nothing_heavy_is_loaded():
    code = "import sys, gpt_pjit.partition.__main__; print(*sys.modules)"
    assert HEAVY.isdisjoint(python("-c", code).stdout.split())


def test_help_is_no_failure():
    result = partition("--help")
    assert result.returncode == 0
    assert "--config" in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize("form", ["--json", "--nojson"])
def test_a_reader_that_has_enough_is_no_error(form):
    command = [sys.executable, "-m", "gpt_pjit.partition", "explain", *CONFIG, form]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert without_reader(command, cwd=ROOT, env=environment) == (0, "")
