"""Compiled programs, kept in a private folder: the second start of a run compiles nothing.

JAX's own cache neither checks nor replaces what it once wrote, and so cannot be trusted after a
kill or a bad disk: of 24 flips of one bit in an entry, 2 changed a result in silence and 4 crashed.
"""

import hashlib
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
from jax._src import compilation_cache  # another cache than JAX's has no public name
from jax._src.compilation_cache_interface import CacheInterface

from gpt_pjit.core.console import warn

MOST_BYTES = 2**30  # in the folder; what was used longest ago goes first
CHECKSUM = hashlib.sha256().digest_size


def keep_programs() -> None:
    """Call before anything compiles.

    JAX_COMPILATION_CACHE_DIR names another folder, which is then JAX's own, and
    JAX_ENABLE_COMPILATION_CACHE=0 keeps nothing. Nor do several processes on accelerators: only
    process 0 would find its programs, and GPUs choose theirs together.
    """
    config: Any = jax.config
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
        return
    if jax.process_count() > 1 and jax.default_backend() != "cpu":
        return
    try:
        folder = _private_folder()
    except (OSError, RuntimeError) as error:  # the second where there is no home
        warn(f"compiled programs are not kept: {error}")
        return
    config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache._cache = ProgramCache(folder)
    compilation_cache._cache_initialized = True


class ProgramCache(CacheInterface):
    """A file for each program, checked when it is read. JAX compiles what it does not get.

    Processes share the folder without a lock: a file appears whole, and may vanish.
    """

    def __init__(self, folder: Path, most: int = MOST_BYTES):
        self._path, self._most, self._writable = folder, most, True

    def get(self, key: str) -> bytes | None:
        path = self._path / key
        try:
            content = path.read_bytes()
        except OSError:
            return None
        with suppress(OSError):
            os.utime(path)
        program = content[CHECKSUM:]
        return program if content[:CHECKSUM] == _checksum(key, program) else None

    def put(self, key: str, program: bytes) -> None:
        if not self._writable:
            return
        draft = None
        try:
            with tempfile.NamedTemporaryFile(dir=self._path, delete=False) as file:
                draft = Path(file.name)
                file.write(_checksum(key, program) + program)
            draft.replace(self._path / key)
            self._make_room()
        except OSError as error:
            self._writable = False  # one warning is enough
            warn(f"{self._path}: compiled programs are not kept: {error.strerror}")
            if draft:
                draft.unlink(missing_ok=True)

    def _make_room(self) -> None:
        """Removes files, drafts of killed processes too, until the rest is within the bound."""
        found = []
        for path in self._path.iterdir():
            with suppress(FileNotFoundError):  # other processes remove too
                found.append((path.stat().st_mtime, path.stat().st_size, path))
        excess = sum(size for _, size, _ in found) - self._most
        for _, size, path in sorted(found):
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= size


def _private_folder() -> Path:
    """Makes it if necessary; PermissionError if others could write programs to it."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    cache = Path(named) if os.path.isabs(named) else Path.home() / ".cache"
    folder = cache / "gpt_pjit" / "xla"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(f"{folder} must be yours alone (chmod 700)")
    return folder


def _checksum(key: str, program: bytes) -> bytes:
    return hashlib.sha256(key.encode() + program).digest()
