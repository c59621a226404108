"""What the forgeries are made of, and what must come of them."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gpt_pjit.core.tokens import BytesTokenizer
from gpt_pjit.data import DatasetWriter
from tests.helpers import make_workdir, tiny
from tests.hf.checkpoints import write_checkpoint
from tests.hostile.sandbox import run

SIZES = {"n_layers": 1, "n_heads": 2, "d_model": 16, "d_ff": 32, "vocab_size": 264}
LONGEST_MESSAGE = 20_000  # characters


class Touch:
    """Its pickle makes a file where it is read."""

    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def written(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def pipe(name: str) -> Callable[[Path], None]:
    def forge(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return forge


def linked(name: str, target: str) -> Callable[[Path], None]:
    def forge(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.symlink_to(target)

    return forge


def some(forgeries, *quick: str) -> list:
    """All names as parameters, all but the `quick` ones slow."""
    marks = {name: [] if name in quick else [pytest.mark.slow] for name in forgeries}
    return [pytest.param(name, marks=marks[name]) for name in forgeries]


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """A folder with a token set, a finished run and a model of transformers."""
    folder = tmp_path_factory.mktemp("originals")
    with DatasetWriter(folder / "set", BytesTokenizer()) as writer:
        for split in writer.splits.values():
            split.append(np.arange(2000) % 251, [1000, 2000], 2000)
    make_workdir(folder / "run", tiny(model=SIZES))
    write_checkpoint(folder / "model", "gpt2")
    return folder


@pytest.fixture
def sandbox(originals, tmp_path):
    shutil.copytree(originals, tmp_path / "sandbox")
    return tmp_path / "sandbox"


@pytest.fixture
def refused(sandbox, tmp_path):
    """`refused(ARGV, match)`: the command ends in one message that says so, and changes nothing."""

    def check(argv, match, codes=(77, 78)):
        before = listing(tmp_path)
        ended = run(*argv, only_in=tmp_path)
        assert ended.code in codes, ended
        assert "Traceback" not in ended.message, ended.message
        assert re.search(match, ended.message), ended.message
        assert not re.search("(?i)memory|alloc", ended.message), ended.message  # MEMORY was met
        assert len(ended.message) < LONGEST_MESSAGE, ended.message[:LONGEST_MESSAGE]
        assert listing(tmp_path) == before

    return check


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    found = {path: path.lstat() for path in folder.rglob("*")}
    return {str(path): (stat.st_mtime_ns, stat.st_size) for path, stat in found.items()}
