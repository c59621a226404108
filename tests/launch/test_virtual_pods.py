"""Trainings on the shapes of real pods: their hosts, their devices, and the order of these.

Each pod's losses equal those of one process, and a run moves between pods.
"""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from gpt_pjit.core.errors import EXIT_DONE
from tests.helpers import ROOT, write_texts

pytest.importorskip("libtpu", reason="wants libtpu, of the extra `plan`")
pytestmark = [pytest.mark.tpu_compiler, pytest.mark.slow]

FIELDS = {
    "model.n_layers": 2,
    "model.d_model": 64,
    "model.d_ff": 128,
    "model.vocab_size": 264,
    "model.dropout_residual": 0.1,
    "data.text_exclude": "",
    "data.tokenizer": "bytes",
    "data.validation_fraction": 0.2,
    "data.sequence_length": 32,
    "data.batch_size": 32,
    "optim.steps": 8,
    "optim.warmup_steps": 2,
    "eval.every": 4,
    "checkpoint.every": 4,
    "log.every": 1,
    "sample.tokens": 0,
}
PODS = [
    # hosts x devices a host, and what is split over them
    ("v3-32", {}),  # 4 x 8
    ("v4-32", {"mesh.replica": 2, "mesh.tensor": 2}),  # 4 x 4
    ("v5e-16", {"mesh.tensor": 2}),  # 4 x 4
    ("v5p-16", {"mesh.replica": 2, "partition.layout": "fsdp"}),  # 2 x 4
    ("v6e-8", {"mesh.tensor": 4, "partition.layout": "zero1"}),  # 2 x 4
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("corpus"), files=30, lines=120)


def train(corpus, workdir, topology=None, **changes):
    """Runs the command; the losses and validation losses by step."""
    fields = FIELDS | {"data.text": f"{corpus}/*.txt"} | changes
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    start = [sys.executable, "-m", "gpt_pjit.main"]
    if topology:
        start = ["bash", "launch/local.sh", f"--topology={topology}"]
    result = subprocess.run(
        [*start, "--config=configs/quickstart.py", f"--workdir={workdir}", *flags],
        env=os.environ | {"PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"},
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert result.returncode == EXIT_DONE, result.stderr[-2000:]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {line["step"]: line[name] for line in lines if name in line}
        for name in ("train/loss", "validation/loss")
    ]


@pytest.fixture(scope="module")
def one_process(corpus, tmp_path_factory):
    return train(corpus, tmp_path_factory.mktemp("one") / "run")


@pytest.mark.parametrize(("topology", "changes"), PODS, ids=lambda value: str(value))
def test_a_pod_equals_one_process_and_hands_its_run_on(
    corpus, one_process, tmp_path, topology, changes
):
    workdir = tmp_path / "run"
    on_pod = train(corpus, workdir, topology, **changes)
    for mine, theirs in zip(on_pod, one_process, strict=True):
        assert list(mine) == list(theirs)
        np.testing.assert_allclose(list(mine.values()), list(theirs.values()), rtol=0, atol=1e-5)
    shutil.rmtree(workdir / "checkpoints" / "8")  # back to step 4, and on with one process
    again = train(corpus, workdir)
    np.testing.assert_allclose(again[0][8], one_process[0][8], rtol=0, atol=1e-5)
    shutil.rmtree(workdir / "checkpoints" / "8")
    again = train(corpus, workdir, topology, **changes)
    np.testing.assert_allclose(again[0][8], one_process[0][8], rtol=0, atol=1e-5)
