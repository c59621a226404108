"""The command line: keys that programs rely on, exit codes, one-line messages."""

import dataclasses
import json
import subprocess
import sys

import pytest
from rich.table import Table

from gpt_pjit.core.errors import EXIT_CONFIG, EXIT_DONE, ConfigError
from gpt_pjit.plan import compile as compile_room
from gpt_pjit.plan.arguments import plain_arguments
from gpt_pjit.plan.html import page
from gpt_pjit.plan.plan import make_plan, plan_record
from gpt_pjit.plan.render import change_tables, plan_tables
from gpt_pjit.plan.topology import find_topology
from tests.helpers import ROOT, load_config


def plan(*arguments):
    command = [sys.executable, "-m", "gpt_pjit.plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_keys_of_json(small, plan_on_cpu):
    record = plan_record(plan_on_cpu(small)[1])
    assert record["fits"] is True
    assert record["memory"].keys() >= {"state_bytes", "peak_bytes", "capacity_bytes"}
    assert isinstance(record["collectives"], list)
    assert set(map(type, record["promises"].values())) == {bool}
    assert record["cost"].keys() >= {"mcycles", "step_seconds", "tokens_per_second", "mfu"}
    assert record["compile_seconds"] > 0
    assert json.loads(json.dumps(record)) == record


def test_gpus_without_a_compiler_are_estimated():
    ran = plan("--config=configs/580m.py", "--topology=h100-8", "--json")
    assert ran.returncode == EXIT_DONE, ran.stderr
    record = json.loads(ran.stdout)
    assert record["compiled"] is False
    assert record["compile_seconds"] is None
    assert record["cost"]["mcycles"] is None
    vectors = (2 * 18 + 1) * 1536  # whole on every device
    assert record["memory"]["state_bytes"] == 12 * ((586_931_712 - vectors) // 8 + vectors + 1)
    assert 0 < record["cost"]["mfu"] < 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--config=configs/580m.py", "--topology=v3x32"), "did you mean v3-32"),
        (("--config=configs/580m.py",), "--topology=NAME"),
        (("--topology=v3-32",), "--config=FILE"),
        (("dif", "--config=configs/580m.py"), "no command 'dif'; one of plan, diff"),
    ],
)
def test_mistakes_are_one_message(arguments, says):
    ran = plan(*arguments)
    assert ran.returncode == EXIT_CONFIG
    assert says in ran.stderr
    assert "Traceback" not in ran.stderr


def test_arguments_for_other_processes():
    given = "diff --config=a.py --topology v3-32 --json --revision=main --config.seed=3"
    given += " --against.seed=4 --search --remat=full"
    kept = ["--config=a.py", "--topology=v3-32", "--config.seed=3"]
    assert plain_arguments(given.split()) == kept


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(compile_room, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'gpt_pjit\[plan\]'"):
        make_plan(load_config("580m"), find_topology("v3-32"))


def test_gpus_in_this_machine_are_compiled_for(small, monkeypatch):
    """Stood in for by CPU devices: those of the chip's kind, and as many as the name says."""
    chip = dataclasses.replace(find_topology("h100-2").chip, kinds=("cpu",))
    topology = dataclasses.replace(find_topology("h100-2"), chip=chip)
    assert len(compile_room.devices_of(topology)) == 2
    many = dataclasses.replace(topology, devices=1000)
    assert compile_room.devices_of(many) is None


def test_tables_and_page_show_every_part(small, plan_on_cpu):
    _, planned = plan_on_cpu(small)
    shown = list(plan_tables(planned, 2.0))
    titles = [table.title for table in shown if isinstance(table, Table)]
    assert [title.split()[0] for title in titles] == [
        "Memory",
        "Collectives:",
        "Promises",
        "Time",
    ]
    text = page(planned, "<config>", 2.0)
    assert "&lt;config&gt;" in text
    for part in ("blocks/mlp/up/kernel", "gradients_reduced_once", "master weights", "tokens/s"):
        assert part in text
    assert "http" not in text  # nothing is loaded
    record = plan_record(planned)
    assert len(list(change_tables(record, record, ["nothing"]))) > 3
