"""Files from anywhere, read within bounds: only regular files, no larger than files of their kind.

Reading a pipe or a device never ends; JSON takes thirty times its size in memory.
"""

from pathlib import Path

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.files.buckets import is_remote

LARGEST_JSON = 2**24
LARGEST_TOKENIZER = 2**26  # Gemma's, of 262,144 tokens, has 2**25 bytes
CLAIMED_FREELY = 2**30  # bytes that arrays may have in memory, however small their files


def regular_files(folder: Path) -> dict[Path, int]:
    """The bytes of each file below a local `folder`; ConfigError for anything else, and for linked
    folders.
    """
    found = {}
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_dir():
            found[path] = size_of_regular(path)
    return found


def size_of_regular(path: Path) -> int:
    """The bytes of a file; OSError if there is none, ConfigError if it is anything else."""
    if not is_remote(path) and not path.is_file() and (path.exists() or path.is_symlink()):
        raise ConfigError([f"{path} is not a regular file"], str(path.parent))
    return path.stat().st_size


def check_size(path: Path, size: int, most: int) -> None:
    if size > most:
        problem = f"{path} has {size:,} bytes, far more than such a file needs"
        raise ConfigError([problem], str(path.parent))


def read_regular(path: Path, most: int) -> bytes:
    """The content of a file; ConfigError unless it is a regular one of at most `most` bytes."""
    check_size(path, size_of_regular(path), most)
    return path.read_bytes()
