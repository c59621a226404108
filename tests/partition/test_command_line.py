"""`gpt_pjit partition`: what a person, and a program, reads."""

import json
import shutil
import sys

import pytest

from gpt_pjit.config import ModelConfig
from gpt_pjit.core.errors import EXIT_CONFIG
from gpt_pjit.core.parameters import gpt_rules
from tests.helpers import ROOT
from tests.processes import run, without_reader

CONFIG = (f"--config={ROOT}/configs/580m.py", "--devices=32")
HEAVY = {"grain", "orbax", "matplotlib", "tensorboardX", "tensorstore", "tokenizers", "torch"}


def test_explain_shows_parameters_totals_rules_and_what_moves(partition):
    code, out, _ = partition("explain", *CONFIG)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 100
    for words in (
        "Parameters on data 32, layout zero",
        "L18 D1536 C3 H12 K128",
        "18x48x3x12x128",
        "rule 1",
        "15.2 MiB",
        "(None, 'data', 'tensor')",
        "gather weights, once",
    ):
        assert words in out


def test_explain_writes_a_page_that_loads_nothing(partition, tmp_path):
    path = tmp_path / "page.html"
    fields = ("--config.mesh.tensor=2", f"--html={path}", "--json")
    code, out, _ = partition("explain", *CONFIG, *fields)
    assert code == 0
    record, text = json.loads(out), path.read_text()
    assert record["bytes_a_device"]["stored"] == 73_586_688
    assert not [word for word in ("http", "src=", "@import", "url(h", "<script") if word in text]
    assert len(text) < 300_000
    assert text.count("<svg") == 4 * len(record["parameters"]) == 32
    for path, parameter in record["parameters"].items():
        assert path in text
        assert {"spec", "shape", "bytes"} == parameter["trees"]["stored"].keys()


def test_explain_why_tells_of_each_rule(partition):
    _, out, _ = partition("explain", *CONFIG, "--why=blocks/norm_mlp/scale", "--json")
    verdicts = [trial["verdict"] for trial in json.loads(out)]
    assert verdicts == ["no match"] * 5 + ["taken", "no match"]


def test_lint_exits_78_on_errors_of_all_tables(partition):
    code, out, _ = partition(
        "lint",
        *CONFIG,
        "--config.model.vocab_size=50257",
        "--config.optim.lr_rules=(('blocks/.*', 0.5),)",
        "--config.optim.weight_decay=0.2",
    )
    assert code == EXIT_CONFIG
    assert "no rule matches it" in out
    assert "optim.lr_rules" in out
    code, out, _ = partition("lint", CONFIG[0], "--config.mesh.tensor=5", "--devices=160")
    assert code == EXIT_CONFIG
    assert "dimension 1 of shape (18, 12, 128, 1536) is 12" in out.replace("\n", " ")


def test_lint_exits_0_without_errors(partition, tmp_path):
    assert partition("lint", *CONFIG)[:2] == (0, "no findings\n")
    rules = (("embed/.*", ("tensor", "data")), *gpt_rules(ModelConfig())[1:])
    config = tmp_path / "mine.py"
    text = (ROOT / "configs" / "580m.py").read_text()
    config.write_text(text.replace("return c", f"c.partition.rules = {rules}\n    return c"))
    code, out, _ = partition("lint", f"--config={config}", "--devices=32", "--json")
    assert code == 0
    (finding,) = json.loads(out)
    assert (finding["severity"], finding["kind"], finding["rule"]) == ("warning", "catch-all", 0)


@pytest.mark.parametrize("given", ["one argument", "two arguments", "another file"])
def test_diff_of_two_layouts(partition, tmp_path, given):
    """However the files and the override are given."""
    config, devices = CONFIG
    if given == "two arguments":
        words = (*config.split("="), *devices.split("="), "--against.partition.layout", "zero1")
    else:
        words = (config, devices, "--against.partition.layout=zero1")
    if given == "another file":
        words += ("--against", shutil.copy(ROOT / "configs" / "580m.py", tmp_path))
    code, out, err = partition("diff", *words)
    assert code == 0, err
    assert "partition.layout: 'zero1' -> 'zero'" in out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "stored 2.19 GiB 70.2 MiB -2.12 GiB" in lines
    assert "gather weights, once 0 B 1.06 GiB +1.06 GiB" in lines
    assert "gather updated parameters 2.12 GiB 0 B -2.12 GiB" in lines


def test_a_lock_tells_of_a_renamed_parameter_and_how_to_accept_it(partition, tmp_path):
    config = shutil.copy(ROOT / "configs" / "580m.py", tmp_path)
    flags = ("lock", "--config", config, "--devices=32")
    assert "no such file" in partition(*flags)[2]
    assert partition(*flags, "--write")[0] == 0
    assert partition(*flags)[0] == 0
    lock = tmp_path / "locks" / "580m.data32.zero.json"
    lock.write_text(lock.read_text().replace("blocks/mlp/up/kernel", "blocks/mlp/gate/kernel"))
    code, out, _ = partition(*flags)
    assert code == 1
    accept = f"gpt_pjit partition lock --config={config} --devices=32 --write"
    assert accept in out
    for path in ("blocks/mlp/up/kernel", "blocks/mlp/gate/kernel"):
        assert path in out
    assert out.count("no such parameter") == 8
    assert partition(*accept.split()[2:])[0] == 0
    assert partition(*flags)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("explian", *CONFIG), "invalid choice: 'explian'"),
        (("explain", CONFIG[0]), "e.g. --devices=32"),
        (("explain", *CONFIG, "--config.mesh.tensor=5"), "sizes that work divide 32"),
        (("explain", *CONFIG, "--why=blocks/mlp/up"), "did you mean blocks/mlp/up/kernel"),
        (("explain", *CONFIG, "--html=none/page.html"), "--html=none/page.html cannot be written"),
        (("diff", *CONFIG, "--against=none.py"), "--against has 1 problem"),
        (("lock", *CONFIG, "--devices=none"), "'none' is not a positive integer"),
    ],
    ids=str,
)
def test_mistakes_end_with_one_message_and_exit_78(partition, arguments, words):
    code, _, err = partition(*arguments)
    assert code == EXIT_CONFIG
    assert words in err


THEIRS = """
import jax, jax.numpy as jnp
from jax.sharding import PartitionSpec as P

def shapes():
    return {"attn": {"w": jax.ShapeDtypeStruct((512, 1024), jnp.float32)}, "rate": 0.1}

RULES = [("attn/w", P("fsdp", "tp"))]
RENAMED = [("attention/w", P("fsdp", "tp")), (".*", P())]
"""


@pytest.fixture
def theirs(partition, tmp_path, monkeypatch):
    """`theirs(command, table, *flags)` in the folder of another project."""
    (tmp_path / "their_model.py").write_text(THEIRS)
    monkeypatch.chdir(tmp_path)

    def run(command, table, *flags):
        tree = "--tree=their_model:shapes"
        return partition(command, tree, f"--table=their_model:{table}", *flags)

    yield run
    sys.modules.pop("their_model", None)


def test_trees_and_tables_of_others(theirs):
    mesh = "--mesh=fsdp:4,tp:2"
    code, out, _ = theirs("lint", "RULES", mesh, "--json")
    assert (code, [one["kind"] for one in json.loads(out)]) == (0, ["no array"])
    code, out, _ = theirs("lint", "RENAMED", mesh, "--searched", "--json")
    assert code == EXIT_CONFIG
    found = [(one["severity"], one["kind"]) for one in json.loads(out)]
    assert found[:2] == [("error", "dead"), ("warning", "catch-all")]
    assert found[-2:] == [("warning", "replicated"), ("note", "no array")]
    code, out, _ = theirs("explain", "RULES", mesh, "--layout=zero", "--json")
    parts = json.loads(out)["parameters"]["attn/w"]["trees"]
    assert code == 0
    assert {tree: part["shape"] for tree, part in parts.items()} == {
        "stored": [128, 512],
        "compute": [512, 512],
        "gradients": [128, 512],
        "optimizer": [128, 512],
    }
    code, out, _ = theirs("explain", "RULES", mesh)
    assert code == 0
    assert "0/fsdp 1/tp" in out
    assert "without spec: rate" in out
    code, out, _ = theirs("explain", "RULES", mesh, "--why=attn/w", "--json")
    assert [one["verdict"] for one in json.loads(out)] == ["taken"]


@pytest.mark.parametrize(
    ("table", "flags", "words"),
    [
        ("RULES", (), "they are given without --mesh"),
        ("RULES", ("--mesh=fsdp:4", CONFIG[0]), "they are given with a --config"),
        ("RULE", ("--mesh=fsdp:4",), "module 'their_model' has no attribute 'RULE'"),
        ("RULES", ("--mesh=fsdp:4,fsdp:2",), "is not NAME:VALUE,... with each name once"),
        ("RULES", ("--mesh=fsdp:x",), "'x' is not a positive integer"),
        ("RULES", ("--mesh=fsdp:4,tp:2,pods:2",), "mesh.pods=2: has no role"),
    ],
)
def test_mistakes_in_the_flags_of_others_end_with_78(theirs, table, flags, words):
    code, _, err = theirs("explain", table, *flags)
    assert code == EXIT_CONFIG
    assert words in err
    if "pods" in words:
        assert theirs("explain", table, *flags, "--roles=pods:batch")[0] == 0


def python(*arguments):
    return run([sys.executable, *arguments])


def test_it_runs_as_a_module_and_loads_nothing_heavy():
    code = "import sys, gpt_pjit.partition.command; print(*sys.modules)"
    assert HEAVY.isdisjoint(python("-c", code).stdout.split())
    result = python("-m", "gpt_pjit.partition", "explain", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "--why" in result.stdout


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_closed_pipe_is_not_an_error(form):
    command = [sys.executable, "-m", "gpt_pjit.partition", "explain", *CONFIG, *form]
    assert without_reader(command) == (0, "")
