"""Disks that are full, over a quota or read-only, on all hosts or on one: one sentence, and nothing
is lost.
"""

import os
import shutil
import signal
import subprocess

import pytest

from gpt_pjit.core.checkpoints import saved_steps
from gpt_pjit.core.errors import EXIT_CONFIG, EXIT_DONE, EXIT_FAULT, EXIT_PREEMPTED
from tests.chaos.harness import assert_same_run

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


@pytest.fixture
def quota(tmp_path):
    """`quota("1M")` limits the folder `disk`, also for root, and `quota("none")` no longer does."""
    if not shutil.which("mkfs.btrfs"):
        pytest.skip("makes a btrfs, for which it wants btrfs-progs")
    image, mounted = tmp_path / "image", tmp_path / "mounted"
    with image.open("wb") as file:
        file.truncate(2**28)
    mounted.mkdir()
    subprocess.run(["mkfs.btrfs", "--quiet", image], check=True)
    tried = subprocess.run(["mount", "-o", "loop", image, mounted], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"this machine refuses to mount a btrfs: {tried.stderr.strip()}")

    def btrfs(*words):
        subprocess.run(["btrfs", *map(str, words)], check=True, capture_output=True)

    btrfs("quota", "enable", mounted)
    btrfs("subvolume", "create", mounted / "disk")
    (tmp_path / "disk").symlink_to(mounted / "disk")
    yield lambda limit: btrfs("qgroup", "limit", limit, mounted / "disk")
    subprocess.run(["umount", "--lazy", mounted], check=True)


def fill(disk, but):
    """Leaves `but` bytes free."""
    free = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize - but))


def assert_fails(run, step, words, change=lambda: None, **options):
    """A `change` of the disk before a step ends all processes at once, in a sentence."""
    held = {"at": "train", "step": step, "do": "SIGSTOP", "process": 0}
    run.start_until_fault(held, **options)
    change()
    run.signal(signal.SIGCONT)
    ended = run.wait(60)
    assert ended.codes == [EXIT_FAULT] * run.processes, ended.errors
    assert all(words in error for error in ended.errors), ended.errors
    assert ended.seconds < 20


def test_a_full_disk_is_one_sentence_and_the_run_resumes(trainer, golden, disk):
    run = trainer("disk/run")
    # The disk is full once step 8 is written.
    assert_fails(run, 11, "No space left on device", lambda: fill(disk, 4096))
    assert saved_steps(run.workdir / "checkpoints")[-1] in (4, 8)
    (disk / "filler").unlink()
    assert run.run().codes == [EXIT_DONE]
    assert_same_run(run, golden())
    assert not list((run.workdir / "checkpoints").glob("*tmp*"))


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_quota_is_one_sentence_on_all_hosts_and_the_run_resumes(
    trainer, golden, quota, processes
):
    shape = {"processes": processes, "devices": 2 // processes}
    run = trainer("disk/run", **shape)

    def limit():
        os.sync()  # a quota counts what has reached the disk
        quota("1M")

    # Step 8 is written, and the quota met in a later save.
    assert_fails(run, 11, "Disk quota exceeded", limit)
    quota("none")
    assert run.run().codes == [EXIT_DONE] * processes
    assert_same_run(run, golden(**shape))


@pytest.mark.long
def test_a_quota_on_one_host_alone_ends_both(trainer):
    """Of the bytes in a file: a quota of a file system holds for all who write to it."""
    run = trainer(processes=2, devices=1)
    assert_fails(run, 3, "File too large", prefixes={1: ["prlimit", "--fsize=30000"]})
    assert run.run().codes == [EXIT_DONE] * 2


@pytest.mark.long
@pytest.mark.parametrize("room", [9_000, 14_000, 150_000])
def test_a_disk_that_fills_up_in_a_save_ends_both_hosts(trainer, disk, room):
    """In the merge at the end, which process 0 does alone, in its files of metadata, in arrays."""
    run = trainer("disk/run", processes=2, devices=1)
    assert_fails(run, 11, "No space left on device", lambda: fill(disk, room))
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


@pytest.mark.long
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
    first.start_until_fault({"at": "train", "step": 10, "do": "SIGSTOP"})
    ended = second.run()
    assert ended.codes == [EXIT_FAULT], ended.errors
    assert "is being trained by process" in ended.errors[0]
    first.signal(signal.SIGCONT)
    assert first.wait().codes == [EXIT_DONE]
    assert len(first.losses()) == 24
