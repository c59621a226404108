"""A lock in a bucket, where nothing notices that its owner is gone: it must be renewed.

The lock is the file `lock-N` of the largest N, and its owner changes it all the time. Who sees it
unchanged for LIMIT seconds, by his own clock, makes `lock-(N + 1)`; the store lets only one do so.
"""

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from gpt_pjit.core.console import say, warn
from gpt_pjit.core.errors import FaultError
from gpt_pjit.core.files.buckets import create_file, is_remote

LIMIT = 60.0  # seconds without a renewal, after which another may take the lock
SECONDS_BETWEEN_RENEWALS = 10.0
SECONDS_BETWEEN_LOOKS = 1.0


def in_use(folder: Path, owner: str) -> FaultError:
    problem = f"{folder} is being trained by {owner}; stop it, or choose another --workdir"
    return FaultError([problem], "--workdir")


class Lease:
    """Use as a context manager; FaultError names the owner if another one renews the lock.

    `lost(owner)` is called, in a thread, once another has taken it: this one was silent too long.
    """

    def __init__(self, folder: Path, owner: str, lost: Callable[[str], None]):
        assert is_remote(folder)
        self._folder, self._owner, self._lost = folder, owner, lost
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._number = self._take()
        self._file(self._number - 1).unlink(missing_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._thread.join()
        self._file(self._number).unlink(missing_ok=True)

    def _take(self) -> int:
        """The number of our lock."""
        seen, since = "", 0.0
        while True:
            number, content = self._newest()
            expired = content == seen and time.monotonic() - since > LIMIT
            if not content or expired:
                try:
                    create_file(self._file(number + 1), f"{self._owner}\n0".encode())
                except FileExistsError:
                    continue  # another was faster
                return number + 1
            owner = content.split("\n")[0]
            if seen and content != seen:
                raise in_use(self._folder, owner)
            if not seen:
                seen, since = content, time.monotonic()
                wait = f"waiting up to {LIMIT:.0f} s to see whether that process is alive"
                say(f"{self._folder} is locked by {owner}; {wait}")
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def _renew(self) -> None:
        content = f"{self._owner}\n0"
        for count in itertools.count(1):
            if self._released.wait(SECONDS_BETWEEN_RENEWALS):
                return
            try:
                number, found = self._newest()
                if (number, found) == (self._number, content):
                    content = f"{self._owner}\n{count}"
                    self._file(number).write_bytes(content.encode())
                    continue
            except Exception as error:  # of the store's client; the next renewal makes up for it
                warn(f"the lock of {self._folder} could not be renewed: {error}".split("\n")[0])
                continue
            self._lost(found.split("\n")[0])
            return

    def _newest(self) -> tuple[int, str]:
        """The number and the content of the newest lock; 0 and nothing if there is none."""
        numbers = [int(file.name.removeprefix("lock-")) for file in self._folder.glob("lock-*")]
        number = max(numbers, default=0)
        try:
            return number, self._file(number).read_text() if number else ""
        except FileNotFoundError:  # released since
            return self._newest()

    def _file(self, number: int) -> Path:
        return self._folder / f"lock-{number}"
