"""Disks that are full or read-only, on all hosts or on one: one sentence, and nothing is lost."""

import os
import subprocess

import pytest

from gpt_pjit.core.checkpoints import saved_steps
from gpt_pjit.core.errors import EXIT_CONFIG, EXIT_DONE, EXIT_FAULT, EXIT_PREEMPTED
from tests.chaos.harness import assert_same_state

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems, for which it must be root"),
]


def mount(*words):
    subprocess.run(["mount", *map(str, words)], check=True)


@pytest.fixture
def disk(tmp_path):
    """A small disk."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=32m", "none", folder)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk, but):
    """Leaves `but` bytes free."""
    free = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize - but))


def test_a_full_disk_is_one_sentence_and_the_run_resumes(trainer, golden, disk):
    run = trainer("disk/run")
    # The disk is full once step 8 is written.
    run.start([{"at": "train", "step": 11, "do": "SIGSTOP"}])
    run.await_event("chaos: ")
    fill(disk, 4096)
    run.signal(18)  # SIGCONT
    ended = run.wait(60)
    assert ended.codes == [EXIT_FAULT], ended.errors
    assert "No space left on device" in ended.errors[0]
    assert saved_steps(run.workdir / "checkpoints")[-1] in (4, 8)
    assert ended.seconds < 20
    (disk / "filler").unlink()
    assert run.run().codes == [EXIT_DONE]
    expected = golden()
    assert run.losses() == expected.losses()
    assert_same_state(run.final_state(), expected.final_state())
    assert not list((run.workdir / "checkpoints").glob("*tmp*"))


@pytest.mark.parametrize("room", [9_000, 14_000, 150_000])
def test_a_disk_that_fills_up_in_a_save_ends_both_hosts(trainer, disk, room):
    """In the merge at the end, which process 0 does alone, in its files of metadata, in arrays."""
    run = trainer("disk/run", processes=2, devices=1)
    run.start([{"at": "train", "step": 11, "do": "SIGSTOP", "process": 0}])
    run.await_event("chaos: ")
    fill(disk, room)
    run.signal(18)  # SIGCONT
    ended = run.wait(60)
    assert ended.codes == [EXIT_FAULT] * 2, ended.errors
    assert ended.seconds < 20
    assert all("No space left on device" in error for error in ended.errors)
    (disk / "filler").unlink()
    assert run.run().codes == [EXIT_DONE] * 2


def test_a_disk_that_turns_read_only_is_one_sentence(trainer, disk):
    run = trainer("disk/run")
    assert run.run([{"at": "train", "step": 7, "do": "SIGTERM"}]).codes == [EXIT_PREEMPTED]
    mount("-o", "remount,ro", disk)
    ended = run.run()
    assert ended.codes == [EXIT_CONFIG], ended.errors
    assert "Read-only file system" in ended.errors[0]
    assert "Traceback" not in ended.errors[0]
    mount("-o", "remount,rw", disk)
    assert run.run().codes == [EXIT_DONE]


def test_one_host_that_cannot_write_ends_both(trainer, disk):
    run = trainer("disk/run", processes=2, devices=1)
    assert run.run([{"at": "train", "step": 7, "do": "SIGTERM", "process": 0}]).codes == [75, 75]
    read_only = f'mount --bind "{disk}" "{disk}" && mount -o remount,bind,ro "{disk}" && exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", read_only, "sh"]
    ended = run.run(prefixes={1: prefix})
    assert ended.codes == [EXIT_CONFIG] * 2, ended.errors
    assert all("Read-only file system" in error for error in ended.errors)
    assert run.run().codes == [EXIT_DONE] * 2


def test_two_trainers_in_one_workdir(trainer):
    first, second = trainer(), trainer()
    first.start([{"at": "train", "step": 10, "do": "SIGSTOP"}])
    first.await_event("chaos: ")
    logs = first.logs
    ended = second.run()
    assert ended.codes == [EXIT_FAULT], ended.errors
    assert "is being trained by process" in ended.errors[0]
    first.logs = logs
    first.signal(18)
    assert first.wait().codes == [EXIT_DONE]
    assert len(first.losses()) == 24
