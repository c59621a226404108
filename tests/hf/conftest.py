"""Tiny checkpoints of transformers, and the workdirs that are imported from them."""

import pytest

from gpt_pjit.hf import import_model
from tests.hf.checkpoints import MODELS, write_checkpoint


@pytest.fixture(scope="session", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="session")
def theirs(name, tmp_path_factory):
    """A folder in the form of transformers."""
    return write_checkpoint(tmp_path_factory.mktemp("theirs") / name, name)


@pytest.fixture(scope="session")
def imported(name, theirs, tmp_path_factory):
    """The workdir of an import of it."""
    workdir = tmp_path_factory.mktemp("imported") / name
    import_model(str(theirs), workdir)
    return workdir
