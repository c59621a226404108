"""Folders for Orbax: local ones of any name, and those in buckets.

Orbax writes arrays to Google's store through TensorStore, but not to S3, for which TensorStore has
a driver too. `_open_s3` says where: four names of Orbax 0.12, none of them public.
"""

import functools
import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath
from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from gpt_pjit.core.files import is_remote, tensorstore_spec

COMMIT = "commit_success.txt"  # in a bucket, where nothing can be renamed, the last file of a step


class _Folder(type(epath.Path("/"))):  # type: ignore[misc]
    """A local folder for Orbax, whose own path class, of etils, reads the folder's name as a
    pattern, so that nothing is found in `run[1]`, and takes /s3/run for s3://run.
    """

    _uri_scheme = None

    def glob(self, pattern: str) -> Iterator[Any]:
        return (self / match for match in glob.glob(pattern, root_dir=self))


def orbax_folder(directory: Path) -> Any:
    if not is_remote(directory):
        return _Folder(directory.resolve())
    if str(directory).startswith("s3://"):
        _open_s3()
    return directory


@functools.cache
def _open_s3() -> None:
    """Has Orbax treat S3 as Google's store: TensorStore's driver, and a last file instead of a
    rename.
    """
    urls = ("gs://", "s3://")
    of_google, normalize = gcs_utils.get_kvstore_for_gcs, tensorstore_utils._normalize_path

    def kvstore(path: str) -> Any:  # of a folder or of a file
        if path.startswith("gs://"):
            return of_google(path)
        spec = tensorstore_spec(path)
        return spec | {"path": spec["path"].rstrip("/")}

    gcs_utils._GCS_PATH_PREFIX = urls
    gcs_utils.get_kvstore_for_gcs = kvstore
    tensorstore_utils._use_gcs_driver = lambda directory: directory.startswith(urls)
    tensorstore_utils._normalize_path = lambda path: normalize(path).replace("s3:/", "s3://")
