"""Files that are replaced whole, and errors of the file system as one sentence."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt_pjit.core.errors import ConfigError, FaultError
from gpt_pjit.core.files.bounded import LARGEST_JSON, read_regular
from gpt_pjit.core.files.buckets import is_remote

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
# Whose errors of a bucket, such as missing credentials, are no OSErrors.
CLIENT_PACKAGES = {"aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "s3fs"}
DEEPEST_JSON = 100  # levels


def write_whole(path: Path, text: str) -> None:
    """Replaces a file in one step, which a power failure survives; ConfigError if it cannot."""
    with file_errors(f"{path} cannot be written", str(path.parent)):
        replace_file(path, text.encode())


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """As `write_whole`; raises what the file system or the store raises."""
    if is_remote(path):
        path.write_bytes(content)  # a store replaces a file in one step
        return
    draft = path.with_name(f"{path.name}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(content)
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
        content = read_regular(path, LARGEST_JSON)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        problem = f"{path} is damaged: not valid JSON ({error})"
        raise ConfigError([problem], str(path.parent)) from None
    if not _is_shallow(value):
        raise ConfigError([f"{path} is damaged: nested too deeply"], str(path.parent))
    if not isinstance(value, dict):
        raise ConfigError([f"{path} is damaged: not a JSON object"], str(path.parent))
    return value


def _is_shallow(value: Any, levels: int = DEEPEST_JSON) -> bool:
    """Whether JSON can be written again: Python writes with fewer levels than it reads."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_shallow(one, levels - 1) for one in inner)


@contextmanager
def file_errors(problem: str, source: str) -> Iterator[None]:
    """An OSError of the block as a ConfigError; as a FaultError if a later try may succeed."""
    try:
        yield
    except OSError as error:
        where = f", {error.filename}" if error.filename else ""
        named = isinstance(error, FileNotFoundError | PermissionError)  # by stores without errno
        kind = ConfigError if named or error.errno in OF_THE_USER else FaultError
        raise kind([f"{problem}: {error.strerror or error}{where}"], source) from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in CLIENT_PACKAGES:
            raise
        kind = ConfigError if "Credentials" in type(error).__name__ else FaultError
        reason = str(error).split("\n", 1)[0]
        raise kind([f"{problem}: {reason}"], source) from None
