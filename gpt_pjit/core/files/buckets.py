"""Folders in object stores, which have neither folders, nor renames, nor appending.

Files go through fsspec, and arrays through TensorStore, which has its own clients of both stores.
Both find the same credentials. AWS_ENDPOINT_URL leads both to another server that speaks S3;
to one that speaks as Google's, STORAGE_EMULATOR_HOST leads fsspec, and TENSORSTORE_GCS_HTTP_URL
TensorStore.
"""

import fnmatch
import glob
import importlib.util
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self, cast

from etils import epath
from etils.epath import backend

from gpt_pjit.core.errors import ConfigError

CLIENTS = {"gs": "gcsfs", "s3": "s3fs"}  # the package for each scheme, in the extra of its name


class BucketPath(type(epath.Path("/"))):  # type: ignore[misc]
    """A path below gs:// or s3:// with the methods of pathlib that we use."""

    _backend = backend.fsspec_backend  # also where TensorFlow is installed

    def resolve(self, strict: bool = False) -> Self:
        return self

    def is_mount(self) -> bool:
        return False

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Nothing: a folder is there as long as a file is in it. fsspec would make the bucket."""

    def read_bytes(self) -> bytes:
        """In one request. `open` makes several, and s3fs fails if the file changes in between."""
        return cast(bytes, _store(self).cat_file(_key(self)))

    def read_text(self, encoding: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8")

    def iterdir(self) -> Iterator[Self]:
        for key in _store(self).ls(_key(self), detail=False):
            if (key := key.rstrip("/")) != _key(self):  # what web consoles make for a folder
                yield self / key.rpartition("/")[2]

    def glob(self, pattern: str) -> Iterator[Self]:
        with suppress(FileNotFoundError):
            yield from (p for p in self.iterdir() if fnmatch.fnmatchcase(p.name, pattern))

    def stat(self) -> Any:
        return SimpleNamespace(st_size=super().stat().length)

    def rename(self, target: Any) -> Self:
        """Copies every file, then deletes the old ones: a kill in between leaves both."""
        store, old, new = _store(self), _key(self), _key(target)
        for file in store.find(old):
            store.cp_file(file, new + file.removeprefix(old))
        store.rm(old, recursive=True)
        return target


def as_path(text: str | os.PathLike[str]) -> Path:
    """The local path or the `BucketPath` that `text` names; ConfigError for any other URL."""
    text = os.fspath(text)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(text).expanduser()
    if scheme not in CLIENTS:
        problem = f"{text} is neither a path on this machine nor gs://... or s3://..."
        raise ConfigError([problem], "path")
    client = CLIENTS[scheme]
    if importlib.util.find_spec(client) is None:
        problem = f"{scheme}:// needs the package {client}: pip install 'gpt_pjit[{scheme}]'"
        raise ConfigError([problem], text)
    bucket, _, folder = rest.partition("/")
    if not bucket or not folder.strip("/"):
        problem = f"{text} is not a folder in a bucket; give {scheme}://BUCKET/FOLDER"
        raise ConfigError([problem], "path")
    if glob.has_magic(text):
        problem = f"{text} has *, ? or [, which clients take for patterns; choose another name"
        raise ConfigError([problem], "path")
    import fsspec

    # A cached listing would hide what other hosts, Orbax and TensorStore have written.
    fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False
    logging.getLogger(client).setLevel(logging.CRITICAL)  # it logs what it raises
    return cast(Path, BucketPath(text))


def is_remote(path: Path) -> bool:
    return isinstance(path, BucketPath)


def write_probe(folder: Path, process: int) -> None:
    """Writes a file and deletes it; raises what the store or the file system raises. `process` is
    this one.
    """
    probe = folder / f"probe-{process}"
    probe.write_bytes(bytes(4096))
    probe.unlink()


def create_file(path: Path, content: bytes) -> None:
    """Writes a new file of a bucket; FileExistsError if it is there, also if that was just now."""
    _store(path).pipe_file(_key(path), content, mode="create")


def check_bucket(folder: Path, process: int) -> None:
    """Raises ConfigError if `folder`, of a bucket, cannot be written by this `process`."""
    try:
        write_probe(folder, process)
    except FileNotFoundError:
        problem = f"there is no bucket {'/'.join(str(folder).split('/')[:3])}; create it"
        raise ConfigError([problem], str(folder)) from None
    except Exception as error:
        if any(word in type(error).__name__ for word in ("Connect", "Timeout")):
            raise  # the network's, not the user's
        reason = str(error).split("\n", 1)[0]
        remedy = "check the credentials, and that they may write and delete there"
        problem = f"{folder} cannot be written: {reason}; {remedy}"
        raise ConfigError([problem], str(folder)) from None


def files_below(folder: Path) -> list[tuple[int, float]]:
    """The size, and the time of the last change, of every file below `folder`."""
    if not is_remote(folder):
        stats = [file.stat() for file in folder.rglob("*") if file.is_file()]
        return [(stat.st_size, stat.st_mtime) for stat in stats]
    found = _store(folder).find(_key(folder), detail=True).values()
    times = ((file, file.get("LastModified") or file["mtime"]) for file in found)  # s3fs, gcsfs
    return [(file["size"], time.timestamp()) for file, time in times]


def copy_folder(source: Path, target: Path, last: str) -> None:
    """Copies a local folder into a bucket; the file `last`, which makes it count, comes last."""
    files = sorted(file for file in source.rglob("*") if file.is_file())
    for file in sorted(files, key=lambda file: file == source / last):
        (target / file.relative_to(source).as_posix()).write_bytes(file.read_bytes())


def remove_folder(folder: Path) -> None:
    """Removes a folder with all in it, if it is there and can be removed."""
    if is_remote(folder):
        with suppress(FileNotFoundError):
            _store(folder).rm(_key(folder), recursive=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def tensorstore_spec(path: str) -> Any:
    """What TensorStore calls a folder: a local one, or one below a URL."""
    if "://" not in path:
        return {"driver": "file", "path": os.path.abspath(os.path.expanduser(path)) + "/"}
    url = path.rstrip("/") + "/"
    if not url.startswith("s3://"):
        return url
    bucket, _, folder = url.removeprefix("s3://").partition("/")
    spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": folder}
    if "AWS_ACCESS_KEY_ID" in os.environ:  # otherwise it complains of ~/.aws before it looks here
        spec["aws_credentials"] = {"type": "environment"}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):  # which Amazon's own clients read too
        spec |= {"endpoint": endpoint, "aws_region": os.environ.get("AWS_REGION", "us-east-1")}
    return spec


def _store(path: Path) -> Any:
    """The client of a path in a bucket."""
    return BucketPath._backend.fs(str(path))


def _key(path: Path) -> str:
    """A path in a bucket as its client names it."""
    return str(path).partition("://")[2]
