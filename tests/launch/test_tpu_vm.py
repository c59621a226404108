"""launch/tpu_vm.sh, with a stand-in for gcloud that has two workers on this machine."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.helpers import ROOT
from tests.launch.commands import check

TPU_VM = ROOT / "launch" / "tpu_vm.sh"
FLAGS = ["--name=pod", "--zone=europe-west4-a", "--type=v3-32", "--spot"]
# `states` holds what the next questions for the state are answered, and `units` the same for
# systemctl; the last answer stays. A worker is a home folder.
GCLOUD = f"""#!{sys.executable}
import json, os, shutil, subprocess, sys
from pathlib import Path

cloud, words = Path(os.environ["CLOUD"]), sys.argv[1:]
with open(cloud / "calls", "a") as calls:
    calls.write(json.dumps(words) + "\\n")
action = words[3]
flags = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
workers = [cloud / "worker0", cloud / "worker1"]
if flags.get("worker", "all") != "all":
    workers = [workers[int(flags["worker"])]]
if action == "describe":
    states = (cloud / "states").read_text().splitlines()
    (cloud / "states").write_text("\\n".join(states[1:] or states))
    sys.exit(1) if states[0] == "error" else print(states[0])
elif action == "scp":
    for worker in workers:
        shutil.copy(words[4], worker)
elif action == "ssh":
    for worker in workers:
        path = f"{{cloud}}/bin:{{os.environ['PATH']}}"
        environment = os.environ | {{"HOME": str(worker), "USER": "me", "PATH": path}}
        subprocess.run(["bash", "-c", flags["command"]], cwd=worker, env=environment, check=True)
"""
ON_WORKERS = {
    "sudo": '#!/bin/bash\n[[ "$1" != cp ]] && exec "$@" || cp "$2" "$HOME/etc"\n',
    "systemctl": """#!/bin/bash
echo "$*" >> "$HOME/systemctl"
case "$*" in *show*)
    head -1 "$CLOUD/units" | tr ' ' '\\n'
    [[ $(wc -l < "$CLOUD/units") == 1 ]] || sed -i 1d "$CLOUD/units" ;;
esac
""",
    "python3": """#!/bin/bash
[[ "$1" != -c ]] || exit 0
for folder; do :; done
mkdir -p "$folder/bin"; cp "$CLOUD/bin/python" "$folder/bin/"
""",
    "python": '#!/bin/bash\nfor word; do echo "$word"; done > "$HOME/python"\n',
}
DONE = "ExecMainStatus=0 ExecMainCode=1 NRestarts=0 ActiveState=inactive"
RUNS = "ExecMainStatus=0 ExecMainCode=0 NRestarts=0 ActiveState=active"
RESTARTS = "ExecMainStatus=1 ExecMainCode=1 NRestarts=1 ActiveState=activating"


@pytest.fixture
def cloud(tmp_path):
    for name in (
        "local",
        "bin",
        "worker0/etc",
        "worker1/etc",
        "worker0/.config",
        "worker1/.config",
    ):
        (tmp_path / name).mkdir(parents=True)
    for name, text in {
        "local/gcloud": GCLOUD,
        **{f"bin/{k}": v for k, v in ON_WORKERS.items()},
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "states").write_text("ACTIVE\nREADY\n" * 50)
    (tmp_path / "units").write_text(DONE + "\n")
    return tmp_path


def tpu_vm(cloud, *words):
    """The exit code, the output, and the calls of gcloud."""
    return call(cloud, "bash", TPU_VM, *words)


def call(cloud, *command):
    """Each call of gcloud is checked against its documentation."""
    (cloud / "calls").write_text("")
    path = f"{cloud / 'local'}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "CLOUD": str(cloud), "POLL": "0"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    calls = [json.loads(line) for line in (cloud / "calls").read_text().splitlines()]
    for words in calls:
        check(["gcloud", *words])
    return result.returncode, result.stdout + result.stderr, calls


def actions(calls):
    """The calls in short, without the questions."""
    return [f"{call[2]} {call[3]}" for call in calls if call[3] != "describe" and not asks(call)]


def asks(call):
    return any("systemctl show" in word for word in call)


def test_create_waits_for_the_pod(cloud):
    (cloud / "states").write_text("WAITING_FOR_RESOURCES\nPROVISIONING\nerror\nACTIVE\nREADY\n")
    code, shown, calls = tpu_vm(cloud, "create", *FLAGS)
    assert code == 0
    assert shown.splitlines() == [
        "pod: WAITING_FOR_RESOURCES", "pod: PROVISIONING", "pod: no answer", "pod: ACTIVE"
    ]  # fmt: skip
    assert calls[0] == [
        "compute", "tpus", "queued-resources", "create", "pod", "--node-id=pod",
        "--runtime-version=tpu-ubuntu2204-base", "--accelerator-type=v3-32", "--spot",
        "--zone=europe-west4-a",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("type_", "accelerator", "version"),
    [
        ("v4-64", "v4-64", "tpu-ubuntu2204-base"),
        ("v5e-32", "v5litepod-32", "v2-alpha-tpuv5-lite"),
        ("v5p-32", "v5p-32", "v2-alpha-tpuv5"),
        ("v6e-32", "v6e-32", "v2-alpha-tpuv6e"),
    ],
)
def test_each_type_has_its_runtime(cloud, type_, accelerator, version):
    _, _, calls = tpu_vm(cloud, "create", "--name=a", "--zone=b", f"--type={type_}")
    assert f"--accelerator-type={accelerator}" in calls[0]
    assert f"--runtime-version={version}" in calls[0]
    assert "--spot" not in calls[0]


def test_setup_brings_the_commit_to_all_workers_twice(cloud):
    for _ in range(2):
        code, shown, _ = tpu_vm(cloud, "setup", *FLAGS)
        assert code == 0, shown
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True)
    for worker in ("worker0", "worker1"):
        repository = cloud / worker / "gpt_pjit"
        assert (
            subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=repository, text=True) == head
        )
        assert (repository / ".venv" / "installed").exists()
        assert (cloud / worker / "etc" / "gpt_pjit@.service").exists()


def test_run_hands_the_flags_over_and_exits_with_the_code_of_the_run(cloud):
    tpu_vm(cloud, "setup", *FLAGS)
    (cloud / "units").write_text("\n".join([RUNS, RESTARTS, RUNS, DONE]) + "\n")
    flags = ["--config=configs/580m.py", "--config.data.sources=(('a \"b\"', 0.7), ('$c', 0.3))"]
    code, shown, calls = tpu_vm(cloud, "run", *FLAGS, "--", *flags)
    assert code == 0, shown
    assert actions(calls) == ["tpu-vm ssh"]
    for worker in ("worker0", "worker1"):
        home = cloud / worker
        assert "enable --now gpt_pjit@me" in (home / "systemctl").read_text()
        script = home / ".config" / "gpt_pjit.sh"
        environment = os.environ | {"HOME": str(home)}
        subprocess.run(["bash", script], cwd=home / "gpt_pjit", env=environment, check=True)
        words = (home / "python").read_text().splitlines()
        assert words == ["-m", "gpt_pjit.main", "--distributed", *flags]


@pytest.mark.parametrize(
    ("unit", "code"),
    [
        ("ExecMainStatus=78 ExecMainCode=1 ActiveState=failed", 78),
        ("ExecMainStatus=75 ExecMainCode=1 ActiveState=failed", 75),  # by `stop`
        ("ExecMainStatus=9 ExecMainCode=2 ActiveState=failed", 137),
    ],
)
def test_a_run_that_failed_is_left_alone(cloud, unit, code):
    (cloud / "units").write_text(unit + "\n")
    ended, _, calls = tpu_vm(cloud, "run", *FLAGS, "--", "--config=a.py")
    assert (ended, actions(calls)) == (code, ["tpu-vm ssh"])


@pytest.mark.parametrize("gone", ["SUSPENDED", "ACTIVE\nPREEMPTED", "FAILED"])
def test_a_preempted_pod_is_made_again_and_the_run_resumes(cloud, gone):
    again = ["WAITING_FOR_RESOURCES", "ACTIVE", "READY", "ACTIVE", "READY"]
    (cloud / "states").write_text("\n".join(["ACTIVE", "READY", "error", gone, *again]) + "\n")
    (cloud / "units").write_text("\n".join([RUNS, RUNS, DONE]) + "\n")
    code, shown, calls = tpu_vm(cloud, "run", *FLAGS, "--", "--config=a.py")
    assert code == 0, shown
    assert actions(calls) == [
        "tpu-vm ssh", "queued-resources delete", "queued-resources create",
        "tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh",
    ]  # fmt: skip
    delete = next(call for call in calls if call[3] == "delete")
    assert delete[4:] == ["pod", "--force", "--quiet", "--zone=europe-west4-a"]


def test_a_gcloud_that_does_not_answer_deletes_nothing(cloud):
    (cloud / "states").write_text("error\nerror\nACTIVE\nerror\nACTIVE\nREADY\n")
    (cloud / "units").write_text("\n".join([RUNS, RUNS, DONE]) + "\n")
    code, _, calls = tpu_vm(cloud, "run", *FLAGS, "--", "--config=a.py")
    assert (code, actions(calls)) == (0, ["tpu-vm ssh"])


@pytest.mark.parametrize("action", ["status", "stop", "delete", "logs"])
def test_the_other_commands_want_only_the_name_and_zone(cloud, action):
    for worker in ("worker0", "worker1"):
        (cloud / worker / "gpt_pjit.log").touch()
    stand_in = shutil.which("true")
    (cloud / "bin" / "tail").symlink_to(stand_in)  # `logs` follows for ever
    code, shown, calls = tpu_vm(cloud, action, "--name=pod", "--zone=z")
    assert code == 0, shown
    assert calls


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["create", "--name=a", "--zone=b"], "expected --type"),
        (["create", "--type=v3-8"], "expected --name and --zone"),
        (["run", *FLAGS, "--config=a.py"], "unknown flag --config=a.py"),
        (["rm", *FLAGS], "unknown command rm"),
    ],
)
def test_mistakes(cloud, words, problem):
    code, shown, calls = tpu_vm(cloud, *words)
    assert (code, calls) == (78, [])
    assert problem in shown


@pytest.mark.parametrize("action", ["create", "setup", "run", "status", "logs", "stop", "delete"])
def test_a_dry_run_prints_what_would_run(cloud, action):
    words = [action, *FLAGS, "--", "--config=a.py", "--config.data.text=two words"]
    code, shown, calls = tpu_vm(cloud, action, "--dry_run", *words[1:])
    assert (code, calls) == (0, [])
    (cloud / "bin" / "tail").symlink_to(shutil.which("true"))
    if action in ("setup", "run"):
        tpu_vm(cloud, "setup", *FLAGS)
        for worker in ("worker0", "worker1"):
            (cloud / worker / "gpt_pjit.bundle").unlink()
    _, _, real = tpu_vm(cloud, *words)
    printed = re.findall(r"^gcloud .*?--zone=europe-west4-a", shown, re.DOTALL | re.MULTILINE)
    assert len(printed) >= 1
    _, _, printed = call(cloud, "bash", "-c", "\n".join(printed))
    assert asked(printed) == asked(real)


def asked(calls):
    """The calls, each once; without questions for the state, and scp with its temporary folder."""
    return {tuple(call) for call in calls if call[3] not in ("describe", "scp")}
