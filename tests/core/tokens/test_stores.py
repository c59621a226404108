"""Object stores on loopback: a set is read, and trained on, as from a folder."""

import sys

import numpy as np
import pytest

from gpt_pjit.core.errors import EXIT_DONE
from gpt_pjit.core.files import as_path, copy_folder
from gpt_pjit.core.tokens import TokenDataset
from gpt_pjit.data import Corpus, prepare
from tests.data.corpora import random_documents, write_as
from tests.processes import logged, run

MODEL = ["n_layers=1", "n_heads=2", "d_model=32", "d_ff=64", "vocab_size=264"]


@pytest.fixture(scope="module")
def local_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    write_as("jsonl", folder / "c", random_documents(200, 200))
    corpus = Corpus((f"{folder}/c.jsonl",), validation_fraction=0.1)
    prepare(corpus, "bytes", folder / "set")
    return folder / "set"


@pytest.fixture(scope="module")
def stored_set(local_set, bucket):
    copy_folder(local_set, as_path(f"{bucket}/sets/one"), last="dataset.json")
    return f"{bucket}/sets/one"


def losses(path, workdir):
    """The training and validation losses of a short run on a set."""
    flags = [f"model.{field}" for field in MODEL]
    flags += [f"data.path={path}", "data.text=", "data.text_exclude=", "data.tokenizer=bytes"]
    flags += ["data.sequence_length=32", "data.batch_size=8", "optim.steps=12"]
    flags += ["optim.warmup_steps=2", "eval.every=6", "log.every=1", "sample.tokens=0"]
    command = [sys.executable, "-m", "gpt_pjit.main", "--config=tests/run_config.py"]
    command += [f"--workdir={workdir}", *(f"--config.{flag}" for flag in flags)]
    done = run(command)
    assert done.returncode == EXIT_DONE, done.stderr
    return [{k: v for k, v in line.items() if k.endswith("loss")} for line in logged(workdir)]


@pytest.mark.slow
def test_training_streams_from_a_store_with_the_losses_of_a_folder(stored_set, local_set, tmp_path):
    streamed = losses(stored_set, tmp_path / "streamed")
    assert len(streamed) > 12
    assert streamed == losses(local_set, tmp_path / "local")


def test_a_set_in_a_store_is_read_and_verified(stored_set, local_set):
    stored = TokenDataset.open(stored_set)
    local = TokenDataset.open(local_set)
    stored.verify()
    assert stored.info == local.info
    for name, split in stored.splits.items():
        starts = np.arange(0, split.tokens - 40, 97)
        assert np.array_equal(split.read(starts, 40), local.splits[name].read(starts, 40))
        token = split.tokens // 2
        assert split.document_at(token) == local.splits[name].document_at(token)
