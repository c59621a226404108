"""launch/run.sh: installs once for each lock, and hands its flags on."""

import os
import shutil
import subprocess

import pytest

from tests.helpers import ROOT

# Stand-ins for Python: both write down how they are called, and the first makes the second.
SYSTEM_PYTHON = """#!/bin/bash
if [ "$1" = -c ]; then exit "$OLD"; fi
echo "python3 $*" >> "$LOG"
for folder; do :; done
case "$*" in *venv*) mkdir -p "$folder/bin"; cp "$OWN_PYTHON" "$folder/bin/python" ;; esac
"""
OWN_PYTHON = """#!/bin/bash
case "$*" in *"$FAILS"*) exit 1 ;; esac
echo "python $*" >> "$LOG"
"""
LOCKED = "python -m pip install --quiet --require-hashes --requirement launch/requirements.lock"


@pytest.fixture
def host(tmp_path):
    """Runs run.sh in a copy; the exit code, and the calls of Python since the last time."""
    (tmp_path / "repository" / "launch").mkdir(parents=True)
    for name in ("launch/run.sh", "launch/requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / "repository" / name)
    for name, text in (("python3", SYSTEM_PYTHON), ("own", OWN_PYTHON)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"

    def run(*flags, old="0", fails="nothing", **environment):
        log.write_text("")
        path = f"{tmp_path}:{os.environ['PATH']}"
        own = {"LOG": str(log), "OWN_PYTHON": str(tmp_path / "own"), "OLD": old, "FAILS": fails}
        command = ["bash", tmp_path / "repository" / "launch" / "run.sh", *flags]
        environment = os.environ | {"PATH": path} | own | environment
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        return result.returncode, log.read_text().splitlines(), result.stdout

    run.repository = tmp_path / "repository"
    return run


def test_a_first_start_installs_and_a_restart_does_not(host):
    code, calls, _ = host("--config=a.py", "--workdir=with space")
    train = "python -m gpt_pjit.main --config=a.py --workdir=with space"
    editable = "python -m pip install --quiet --editable .[tpu]"
    assert (code, calls) == (0, ["python3 -m venv .venv", LOCKED, editable, train])
    assert host("--config=a.py", "--workdir=with space")[:2] == (0, [train])
    assert host(MODULE="gpt_pjit.evaluate")[1] == ["python -m gpt_pjit.evaluate"]


def test_another_lock_or_extra_installs_again(host):
    host("--install")
    assert host("--install")[1] == []
    with open(host.repository / "launch" / "requirements.lock", "a") as lock:
        lock.write("# new\n")
    assert LOCKED in host("--install")[1]
    assert host("--install", EXTRA="cuda")[1][-1].endswith(".[cuda]")


def test_an_installation_that_failed_is_repeated(host):
    assert host("--install", fails="--editable")[0] == 1
    assert LOCKED in host("--install")[1]


def test_ubuntu_22_gets_a_newer_python(host):
    calls = host("--install", old="1")[1]
    assert calls[:2] == [
        "python3 -m pip install --quiet --user uv",
        "python3 -m uv venv --quiet --seed --python=3.12 .venv",
    ]


def test_a_dry_run_only_prints(host):
    code, calls, shown = host("--dry_run", "--config=a.py")
    assert (code, calls) == (0, [])
    assert shown.splitlines()[-1].split() == [
        "exec", ".venv/bin/python", "-m", "gpt_pjit.main", "--config=a.py"
    ]  # fmt: skip
    assert not (host.repository / ".venv").exists()
