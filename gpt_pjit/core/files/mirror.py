"""Files that grow, for a folder in a bucket: written locally, and copied whole."""

import tempfile
import time
from pathlib import Path

from gpt_pjit.core.files.buckets import is_remote
from gpt_pjit.core.files.whole import file_errors

SECONDS_BETWEEN_COPIES = 60.0


class Mirror:
    """`folder` is where to write: the `target` itself, or if that is in a bucket, a local folder
    whose files `copy` puts there.
    """

    def __init__(self, target: Path):
        self._target, self._copied = target, dict[Path, int]()
        self._temporary = tempfile.TemporaryDirectory() if is_remote(target) else None
        self.folder = Path(self._temporary.name) if self._temporary else target
        self._time = time.monotonic()

    @property
    def is_due(self) -> bool:
        late = time.monotonic() - self._time >= SECONDS_BETWEEN_COPIES
        return self._temporary is not None and late

    def copy(self) -> None:
        """Copies the files that have grown since the last time."""
        if self._temporary is None:
            return
        self._time = time.monotonic()
        for file in sorted(self.folder.rglob("*")):
            if file.is_file() and self._copied.get(file) != (size := file.stat().st_size):
                copy = self._target / file.relative_to(self.folder).as_posix()
                with file_errors(f"{copy} cannot be written", str(self._target)):
                    copy.write_bytes(file.read_bytes())
                self._copied[file] = size

    def close(self) -> None:
        if self._temporary is not None:
            self.copy()
            self._temporary.cleanup()
