"""Trainings on the shapes of real pods: their hosts, their devices, and the order of these.

Each pod's losses equal those of one process, and a run moves between pods.
"""

import shutil
import sys

import numpy as np
import pytest

from gpt_pjit.core.errors import EXIT_DONE
from tests.helpers import write_texts
from tests.processes import by_step, run, run_flags

pytest.importorskip("libtpu", reason="wants libtpu, of the extra `plan`")
pytestmark = [pytest.mark.tpu_compiler, pytest.mark.slow]

FIELDS = {
    "model.dropout_residual": 0.1,
    "data.validation_fraction": 0.2,
    "optim.steps": 8,
    "optim.warmup_steps": 2,
    "eval.every": 4,
    "checkpoint.every": 4,
}
PODS = [
    # hosts x devices a host, and what is split over them
    ("v5e-16", {"mesh.tensor": 2}),  # 4 x 4, not in the order of the hosts
    *(
        pytest.param(*pod, marks=pytest.mark.long)
        for pod in [
            ("v3-32", {}),  # 4 x 8
            ("v4-32", {"mesh.replica": 2, "mesh.tensor": 2}),  # 4 x 4
            ("v5p-16", {"mesh.replica": 2, "partition.layout": "fsdp"}),  # 2 x 4
            ("v6e-8", {"mesh.tensor": 4, "partition.layout": "zero1"}),  # 2 x 4
        ]
    ),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("corpus"), files=30, lines=120)


def train(corpus, workdir, topology=None, **changes):
    """Runs the command; the losses and validation losses by step."""
    fields = FIELDS | {"data.text": f"{corpus}/*.txt"} | changes
    start = [sys.executable, "-m", "gpt_pjit.main"]
    if topology:
        start = ["launch/local.sh", f"--topology={topology}"]
    result = run([*start, *run_flags(workdir, fields)], seconds=600)
    assert result.returncode == EXIT_DONE, result.stderr[-2000:]
    return [by_step(workdir, name) for name in ("train/loss", "validation/loss")]


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
