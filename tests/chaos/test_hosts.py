"""A host that is lost or stuck is named, and all others end within seconds, alike."""

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from gpt_pjit.core.errors import EXIT_DONE, EXIT_INTEGRITY, EXIT_STUCK
from tests.chaos.harness import STEPS, assert_same_run

pytestmark = pytest.mark.slow
AT = {"at": "train", "step": 10}


@pytest.mark.parametrize(
    ("fault", "victim", "processes"),
    [
        pytest.param("sleep", 0, 2, marks=pytest.mark.long),
        pytest.param("sleep", 1, 2, marks=pytest.mark.long),
        pytest.param("sleep", 2, 4, marks=pytest.mark.long),
        pytest.param("SIGSTOP", 0, 2, marks=pytest.mark.long),
        pytest.param("SIGSTOP", 1, 4, marks=pytest.mark.long),
        pytest.param("SIGKILL", 0, 2, marks=pytest.mark.long),
        ("SIGKILL", 1, 2),
        pytest.param("SIGKILL", 2, 4, marks=pytest.mark.long),
    ],
)
def test_all_are_out_within_20_seconds(trainer, golden, processes, victim, fault):
    run = trainer(processes=processes, devices=1)
    run.start_until_fault(AT | {"do": fault, "process": victim})
    stopped = [victim] if fault == "SIGSTOP" else []
    others = [n for n in range(processes) if n != victim]
    for number in others:
        run.running[number].wait(60)
    ended = run.wait(0.1 if stopped else 30)
    print(f"{fault} of process {victim} of {processes}: {ended.seconds:.1f} s, {ended.codes}")
    assert ended.seconds < 20
    codes = {ended.codes[number] for number in others}
    if victim == 0 and fault != "sleep":
        assert codes <= {EXIT_STUCK, -signal.SIGABRT}  # JAX aborts without the coordinator
    else:
        assert codes == {EXIT_STUCK}
        named = f"process {victim} ({socket.gethostname()})"
        says = f"stuck: {named}" if fault == "sleep" else f"{named} is lost"
        assert all(says in ended.errors[number] for number in others), ended.errors
    if fault == "sleep":
        assert ended.codes[victim] == EXIT_STUCK
        assert 'tests/chaos/runner.py", line' in ended.errors[victim]  # its stack
    assert run.run().codes == [EXIT_DONE] * processes
    assert_same_run(run, golden(processes=processes, devices=1))


def test_one_process_that_is_stuck_shows_its_stack(trainer):
    run = trainer()
    ended = run.run([AT | {"do": "sleep"}])
    assert ended.codes == [EXIT_STUCK]
    assert "stuck: no progress for" in ended.errors[0]
    assert "in fire" in ended.errors[0]


def test_a_first_step_that_never_comes_ends_all(trainer):
    run = trainer(processes=2, devices=1, compiles=True, environment={"CHAOS_SLOW_AFTER": "20"})
    run.start_until_fault({"at": "compile", "do": "sleep", "process": 1})
    ended = run.wait(90)
    assert ended.codes == [EXIT_STUCK] * 2, ended.errors
    assert all("stuck: " in error for error in ended.errors)
    assert "in fire" in ended.errors[1]  # its stack


@pytest.mark.long
def test_all_wait_for_one_that_compiles_longest(trainer, golden):
    run = trainer(processes=2, devices=1, compiles=True)
    ended = run.run([{"at": "compile", "do": "slow", "process": 1, "seconds": 40}])
    assert ended.codes == [EXIT_DONE] * 2, ended.errors
    assert_same_run(run, golden(processes=2, devices=1))


@pytest.mark.long
@pytest.mark.parametrize("event", ["compile", "first batch", "save", "data"])
def test_what_is_slow_is_not_stuck(trainer, event):
    """Twice the patience in a place that may take long."""
    run = trainer(processes=2, devices=1)
    ended = run.run([{"at": event, "do": "slow", "process": 1 if event != "data" else 0}])
    assert ended.codes == [EXIT_DONE] * 2, ended.errors


@pytest.mark.long
def test_nan_on_one_host_ends_all_and_leaves_the_good_checkpoints(trainer):
    run = trainer(processes=2, devices=1)
    ended = run.run([{"at": "state", "step": 10, "do": "nan", "process": 1}])
    assert ended.codes == [EXIT_INTEGRITY] * 2, ended.errors
    assert all("holds NaN or infinity" in e or "not finite" in e for e in ended.errors)
    assert run.run().codes == [EXIT_DONE] * 2
    assert list(run.losses()) == list(range(1, STEPS + 1))


@pytest.mark.long
def test_a_flipped_bit_of_a_replica_is_named(trainer):
    run = trainer(processes=2, devices=1, flags={"partition.layout": "ddp"})
    ended = run.run([{"at": "state", "step": 10, "do": "flip", "process": 1}])
    assert ended.codes == [EXIT_INTEGRITY] * 2, ended.errors
    assert "differs from its replicas" in ended.errors[0]


@pytest.fixture
def namespaces():
    """Two network namespaces with a cable between them, for two hosts: their addresses by name."""
    names, hosts = ("gptpjit0", "gptpjit1"), ("10.99.0.1", "10.99.0.2")

    def ip(*words):
        subprocess.run(["ip", *words], check=True)

    for name, address in zip(names, hosts, strict=True):
        ip("netns", "add", name)
        folder = Path("/etc/netns") / name  # becomes /etc/hosts in there: Gloo looks itself up
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{address} {socket.gethostname()}\n")
    ip("link", "add", names[0], "type", "veth", "peer", "name", names[1])
    for name, address in zip(names, hosts, strict=True):
        ip("link", "set", name, "netns", name)
        for words in (["addr", "add", f"{address}/24", "dev", name], ["link", "set", name, "up"]):
            ip("-n", name, *words)
        ip("-n", name, "link", "set", "lo", "up")
    yield dict(zip(names, hosts, strict=True))
    for name in names:
        ip("netns", "delete", name)
        shutil.rmtree(Path("/etc/netns") / name)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: it must be root")
def test_a_cut_network_ends_both_sides(trainer, namespaces):
    (first, address), _ = namespaces.items()
    run = trainer(
        processes=2, devices=1, environment={"JAX_COORDINATOR_ADDRESS": f"{address}:9911"}
    )
    prefixes = {n: ["ip", "netns", "exec", name] for n, name in enumerate(namespaces)}
    run.start_until_fault(AT | {"do": "SIGSTOP", "process": 0}, prefixes=prefixes)
    subprocess.run(["ip", "-n", first, "link", "set", first, "down"], check=True)
    run.signal(signal.SIGCONT)
    ended = run.wait(60)
    print(f"cut network: {ended.seconds:.1f} s, {ended.codes}")
    assert ended.seconds < 25
    assert ended.codes[0] == EXIT_STUCK
    assert f"process 1 ({socket.gethostname()}) is lost" in ended.errors[0]
    assert ended.codes[1] in (EXIT_STUCK, -signal.SIGABRT)  # it reaches nobody
