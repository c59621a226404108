"""The command line: keys that programs rely on, exit codes, one-line messages."""

import dataclasses
import json
import shutil
import sys

import pytest

from gpt_pjit.core.errors import EXIT_BROKEN, EXIT_CONFIG, EXIT_DONE, ConfigError
from gpt_pjit.pages import Cell, Pictures, Table, page
from gpt_pjit.plan import command, compile as compile_room
from gpt_pjit.plan.compile import find_topology
from gpt_pjit.plan.plan import make_plan
from gpt_pjit.plan.views import difference_blocks, plan_blocks
from tests.helpers import ROOT, load_config
from tests.processes import run

CONFIG = f"--config={ROOT}/configs/580m.py"


def test_keys_of_json(small, plan_on_cpu):
    record = plan_on_cpu(small).record
    assert record["fits"] is True
    assert record["memory"].keys() >= {"state_bytes", "peak_bytes", "capacity_bytes"}
    assert isinstance(record["collectives"], list)
    assert set(map(type, record["promises"].values())) == {bool}
    assert record["cost"].keys() >= {"mcycles", "step_seconds", "tokens_per_second", "mfu"}
    assert record["compile_seconds"] > 0
    assert json.loads(json.dumps(record)) == record


@pytest.fixture
def no_gpu_compiler(monkeypatch):
    """As without the extra `plan-gpu`."""
    for room in (command, compile_room):
        monkeypatch.setattr(room, "has_compiler", lambda: False)


@pytest.mark.usefixtures("no_gpu_compiler")
def test_gpus_without_a_compiler_are_estimated(run_plan):
    code, out, err = run_plan(CONFIG, "--topology=h100-8", "--json")
    assert code == EXIT_DONE, err
    record = json.loads(out)
    assert record["compiled"] is False
    assert record["compile_seconds"] is None
    assert record["cost"]["mcycles"] is None
    vectors = (2 * 18 + 1) * 1536  # whole on every device
    assert record["memory"]["state_bytes"] == 12 * ((586_931_712 - vectors) // 8 + vectors + 1)
    assert 0 < record["cost"]["mfu"] < 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((CONFIG, "--topology=v3x32"), "did you mean v3-32"),
        ((CONFIG,), "--topology=NAME"),
        (("--topology=v3-32",), "--config=FILE"),
        (("dif", CONFIG), "invalid choice: 'dif'"),
        ((CONFIG, "--topology=h100-8", "--check"), "no such file"),
    ],
)
def test_mistakes_are_one_message(run_plan, arguments, says):
    code, _, err = run_plan(*arguments)
    assert code == EXIT_CONFIG
    assert says in err


def test_it_runs_as_a_module():
    ran = run([sys.executable, "-m", "gpt_pjit.plan", "--help"])
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "--search" in ran.stdout


@pytest.mark.parametrize("override", [("--against.seed=4",), ("--against.seed", "4")])
def test_diff_of_overrides(run_plan, override):
    words = ("diff", *CONFIG.split("="), "--topology", "h100-8", *override)
    code, out, err = run_plan(*words, "--against.partition.layout=zero1")
    assert code == EXIT_DONE, err
    assert "partition.layout: 'zero1' -> 'zero'" in out
    assert "seed: 4 -> " in out
    assert "master weights" in out


def test_a_record_is_written_checked_and_accepted(run_plan, tmp_path):
    config = shutil.copy(ROOT / "configs" / "580m.py", tmp_path)
    flags = (f"--config={config}", "--topology=h100-8", "--check")
    assert run_plan(*flags, "--write")[0] == EXIT_DONE
    assert run_plan(*flags)[0] == EXIT_DONE
    record = tmp_path / "plans" / "580m.h100-8.json"
    kept = json.loads(record.read_text())
    kept["memory"]["state_bytes"] //= 2
    record.write_text(json.dumps(kept))
    code, out, _ = run_plan(*flags)
    assert code == EXIT_BROKEN
    assert "memory.state_bytes" in out
    assert "+100.0%" in out
    accept = out.strip().splitlines()[-1].split()
    assert accept[:2] == ["gpt_pjit", "plan"]
    assert run_plan(*accept[2:])[0] == EXIT_DONE
    assert run_plan(*flags)[0] == EXIT_DONE


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(compile_room, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'gpt_pjit\[plan\]'"):
        make_plan(load_config("580m"), find_topology("v3-32"))


@pytest.mark.usefixtures("no_gpu_compiler")
def test_gpus_in_this_machine_are_compiled_for(small, monkeypatch):
    """CPU devices stand in: devices of the chip's kind count, as many as the name says."""
    chip = dataclasses.replace(find_topology("h100-2").chip, kinds=("cpu",))
    topology = dataclasses.replace(find_topology("h100-2"), chip=chip)
    assert len(compile_room.devices_of(topology)) == 2
    many = dataclasses.replace(topology, devices=1000)
    assert compile_room.devices_of(many) is None


def test_tables_and_page_show_every_part(small, plan_on_cpu):
    record = plan_on_cpu(small).record
    titles = [block.title for block in plan_blocks(record) if isinstance(block, Table)]
    assert [title.split()[0] for title in titles] == ["Memory", "Collectives:", "Promises", "Time"]
    text = page("<config>", plan_blocks(record, pictures=True))
    assert "&lt;config&gt;" in text
    for part in ("blocks/mlp/up/kernel", "gradients_reduced_once", "master weights", "tokens/s"):
        assert part in text
    assert "http" not in text  # nothing is loaded
    assert len(list(difference_blocks(record, record))) == 3


def test_kernels_and_what_has_no_estimate_are_listed():
    record = json.loads((ROOT / "configs" / "plans" / "580m.v5e-32.json").read_text())
    kernel = {"name": "flash", "times": 36, "flops": 10**9, "bytes": 2**20, "seconds": 1e-3}
    record["cost"]["kernels"] = [kernel | {"basis": "its cost estimate"}]
    kernels, without = (
        block
        for block in plan_blocks(record)
        if isinstance(block, Table) and block.title.startswith(("Kernels", "Without"))
    )
    assert kernels.rows == [
        (Cell("flash", ("by its cost estimate",)), "1.0", "1.00 MiB", "36", "36.00")
    ]
    assert ("fusion: scatter-add", "1") in without.rows


def test_a_committed_plan_is_a_page_with_pictures():
    record = json.loads((ROOT / "configs" / "plans" / "580m.v3-32.json").read_text())
    blocks = list(plan_blocks(record, pictures=True))
    assert sum(isinstance(block, Pictures) for block in blocks) == 2
    text = page("580m", blocks)
    assert text.count("<svg") == 2
    assert "loss_head" in text
    assert len(text) < 60_000
