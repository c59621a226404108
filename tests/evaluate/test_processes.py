"""Several processes score the same requests together, and process 0 alone speaks."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT

pytestmark = pytest.mark.slow
TEXT = "".join(f"sentence {i} of a text for several processes.\n" for i in range(30))


def test_two_processes_give_the_results_of_one(workdir, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    flags = [f"--checkpoint={workdir}", f"--tasks=file:{text},lengths:file:{text}", "--json"]
    one = [sys.executable, "-m", "gpt_pjit.evaluate", *flags]
    script = str(ROOT / "launch" / "local.sh")
    two = [script, "--processes=2", "--devices=2", "--module=gpt_pjit.evaluate", *flags]
    out = f"--out={tmp_path / 'two'}"
    environment = os.environ | {"PYTHON": sys.executable, "JAX_NUM_CPU_DEVICES": "1"}
    records = []
    for command in (one, [*two, out]):
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines(keepends=True)
        spoken = "".join(line for line in lines if not line.startswith("[Gloo]"))  # of XLA itself
        records.append(json.loads(spoken))
    alone, together = records
    assert alone["settings"]["mesh"]["data"] == 1
    assert together["settings"]["mesh"]["data"] == 4
    assert json.loads((tmp_path / "two" / "results.json").read_text()) == together
    for task, metrics in alone.items():
        if task != "settings":
            for name, value in metrics.items():
                assert together[task][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
