"""The lock of a bucket: one owner, taken over only if it is silent, and the old owner is told."""

import threading

import pytest

from gpt_pjit.core.errors import FaultError
from gpt_pjit.core.files import as_path, lease
from gpt_pjit.core.files.lease import Lease


@pytest.fixture
def folder(bucket, request):
    return as_path(f"{bucket}/{request.node.originalname}")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lease, "LIMIT", 5.0)  # a busy machine renews late
    monkeypatch.setattr(lease, "SECONDS_BETWEEN_RENEWALS", 0.1)
    monkeypatch.setattr(lease, "SECONDS_BETWEEN_LOOKS", 0.05)


def never(owner):
    raise AssertionError(owner)


def names(folder):
    return sorted(file.name for file in folder.glob("*"))


def silent(folder, owner, lost=never):
    """A lease whose owner was killed, or hangs, after it took the lock; and what wakes it."""
    wake, held = threading.Event(), Lease(folder, owner, lost)
    held._released.wait = lambda _: not wake.wait()
    held.__enter__()
    return wake


def test_a_second_trainer_is_refused_and_a_later_one_is_not(folder):
    with Lease(folder, "process 1 on a", never):
        with pytest.raises(FaultError, match="is being trained by process 1 on a"):
            Lease(folder, "process 2 on b", never).__enter__()
        assert names(folder) == ["lock-1"]
    assert names(folder) == []
    with Lease(folder, "process 2 on b", never):
        assert names(folder) == ["lock-1"]


def test_the_lock_of_one_that_was_killed_is_taken_by_one_alone(folder):
    silent(folder, "killed")
    took, refused, at_once = [], [], threading.Barrier(3)
    over = threading.Barrier(3)

    def start(owner):
        at_once.wait()
        try:
            with Lease(folder, owner, never):
                took.append(owner)
                over.wait()
        except FaultError as error:
            refused.append(str(error))
            over.wait()

    threads = [threading.Thread(target=start, args=(f"process {n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(took) == 1
    assert all(f"is being trained by {took[0]}" in error for error in refused)
    assert names(folder) == []


@pytest.mark.slow
def test_one_that_was_silent_too_long_is_told(folder):
    """It must not write over what the next owner has written."""
    owners, told = [], threading.Event()
    wake = silent(folder, "first", lambda owner: owners.append(owner) or told.set())
    with Lease(folder, "second", never):
        wake.set()
        assert told.wait(10)
        assert owners == ["second"]
        assert names(folder) == ["lock-2"]
