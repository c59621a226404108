"""Files that are replaced whole, and errors of the file system as one sentence."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt_pjit.core.errors import ConfigError, FaultError

# A wrong path or permission; anything else, such as a full disk, is a fault of the machine.
OF_THE_USER = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EEXIST,
    errno.EINVAL,
}
LARGEST_JSON = 2**26


def write_whole(path: Path, text: str) -> None:
    """Replaces a file in one step, which a power failure survives; ConfigError if it cannot."""
    draft = path.with_name(f"{path.name}.tmp")
    with file_errors(f"{path} cannot be written", str(path.parent)):
        try:
            with draft.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except OSError:
            draft.unlink(missing_ok=True)  # nothing half-written stays
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ConfigError if it cannot be read or holds anything else."""
    with file_errors(f"{path} cannot be read", str(path.parent)):
        if path.exists() and not path.is_file():  # reading a pipe never ends
            raise ConfigError([f"{path} is not a regular file"], str(path.parent))
        if (size := path.stat().st_size) > LARGEST_JSON:
            problem = f"{path} has {size:,} bytes, far more than any file of its name"
            raise ConfigError([problem], str(path.parent))
        content = path.read_bytes()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        problem = f"{path} is damaged, it is not valid JSON: {error}"
        raise ConfigError([problem], str(path.parent)) from None
    if not isinstance(value, dict):
        raise ConfigError([f"{path} is damaged, it is not a JSON object"], str(path.parent))
    return value


@contextmanager
def file_errors(problem: str, source: str) -> Iterator[None]:
    """An OSError of the block as a ConfigError; as a FaultError if a later try may succeed."""
    try:
        yield
    except OSError as error:
        where = f", {error.filename}" if error.filename else ""
        kind = ConfigError if error.errno in OF_THE_USER else FaultError
        raise kind([f"{problem}: {error.strerror or error}{where}"], source) from None
