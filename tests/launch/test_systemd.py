"""launch/systemd/gpt_pjit@.service: verified, and run by a real systemd, as a unit of a user."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers import ROOT

UNIT = ROOT / "launch" / "systemd" / "gpt_pjit@.service"
SYSTEMD = Path("/lib/systemd/systemd")

# A manager of its own in namespaces of its own: nothing of the machine's systemd is touched.
NAMESPACES = ["unshare", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child"]
MANAGER = r"""
set -eu
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
export XDG_RUNTIME_DIR=/run/user
units="$HOME/.config/systemd/user"
mkdir -p /run/systemd/system /run/user "$units/gpt_pjit@.service.d" "$HOME/gpt_pjit" "$HOME/.config"
cp "$UNIT" "$units/"
printf '[Service]\nUser=\nRestartSec=50ms\n' > "$units/gpt_pjit@.service.d/soon.conf"
/lib/systemd/systemd --user &
until systemctl --user is-active --quiet default.target; do sleep 0.05; done

show() { systemctl --user show gpt_pjit@me --property="$1" --value; }
ended() { [[ "$(show ActiveState)" =~ ^(inactive|failed)$ ]]; }
script() { echo "echo >> ~/starts; $1" > ~/.config/gpt_pjit.sh; : > ~/starts; }
report() { echo "$(wc -l < ~/starts) starts, $(show ActiveState), $(show ExecMainStatus)"; }
run() {
    script "$1"
    systemctl --user reset-failed gpt_pjit@me 2> /dev/null || true
    systemctl --user start gpt_pjit@me 2> /dev/null || true
    until ended; do sleep 0.05; done
    report
}
"""


def manage(home, commands):
    """Runs shell commands beside a manager whose home is `home`; their output."""
    result = subprocess.run(
        [*NAMESPACES, "bash", "-c", MANAGER + commands],
        env=os.environ | {"HOME": str(home), "UNIT": str(UNIT)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.fixture
def home(tmp_path):
    if not SYSTEMD.exists():
        pytest.skip("wants systemd")
    probe = subprocess.run([*NAMESPACES, "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"wants namespaces: {probe.stderr}")
    return tmp_path


def test_systemd_verifies_the_unit(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("wants systemd-analyze")
    result = subprocess.run(
        ["systemd-analyze", "verify", UNIT],
        env=os.environ | {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_restarts_by_exit_code(home):
    reports = manage(
        home,
        """
        run '[[ $(wc -l < ~/starts) == 3 ]] || exit 75'
        for code in 77 78 130 1; do run "exit $code"; done
        run 'kill -KILL $$'
        """,
    )
    assert reports == [
        "3 starts, inactive, 0",
        "1 starts, failed, 77",
        "1 starts, failed, 78",
        "1 starts, failed, 130",
        "5 starts, failed, 1",
        "5 starts, failed, 9",
    ]


def test_a_stop_lets_the_trainer_save_and_does_not_restart_it(home):
    reports = manage(
        home,
        """
        script 'trap "touch ~/saved; exit 75" TERM; touch ~/up; sleep 60 & wait'
        systemctl --user start gpt_pjit@me 2> /dev/null
        until [[ -e ~/up ]]; do sleep 0.05; done
        systemctl --user stop gpt_pjit@me 2> /dev/null
        report
        """,
    )
    assert reports == ["1 starts, failed, 75"]
    assert (home / "saved").exists()
