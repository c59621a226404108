"""Four processes train in a bucket, are killed and resume, with the losses of a run in a folder."""

import json
import signal
import sys
import time

import pytest

from gpt_pjit.core.checkpoints.orbax_paths import COMMIT
from gpt_pjit.core.errors import EXIT_CONFIG, EXIT_DONE
from gpt_pjit.core.files import as_path
from tests.helpers import write_texts
from tests.processes import Process, logged, run as run_process, run_flags, wait_for_end

pytestmark = [pytest.mark.slow, pytest.mark.long]

FIELDS = {
    "model.d_ff": 256,
    "model.vocab_size": 300,
    "data.tokenizer": "bpe:300",
    "data.validation_fraction": 0.2,
    "optim.steps": 64,
    "optim.warmup_steps": 2,
    "eval.every": 16,
    "checkpoint.every": 8,
    "checkpoint.keep": 2,
    "sample.tokens": 4,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("corpus"), files=30, lines=120)


def start(module, *flags):
    command = ["launch/local.sh", "--processes=4", "--devices=1", f"--module={module}"]
    return Process([*command, *flags])


def run(module, *flags):
    (end,) = wait_for_end([start(module, *flags)], 600)
    assert end.returncode == EXIT_DONE, end.stderr
    return end.stdout


def training(corpus, workdir):
    fields = FIELDS | {"data.text": f"{corpus}/*.txt"}
    return "gpt_pjit.main", *run_flags(workdir, fields)


def losses(workdir):
    return [{k: v for k, v in line.items() if "throughput" not in k} for line in logged(workdir)]


@pytest.fixture(scope="module")
def in_a_folder(corpus, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("folder") / "run"
    run(*training(corpus, workdir))
    return workdir


def wait_for(path, process):
    deadline = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, process.printed()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_run_in_a_bucket_is_that_in_a_folder(corpus, in_a_folder, bucket, tmp_path):
    workdir = as_path(f"{bucket}/pods/run")
    process = start(*training(corpus, workdir))
    wait_for(workdir / "checkpoints" / "24" / COMMIT, process)
    process.send_signal(signal.SIGKILL)  # the kernel then ends the four
    wait_for_end([process], 60)
    assert not (workdir / "checkpoints" / "64").exists()
    kept = losses(workdir)
    assert kept[-1]["step"] >= 24
    run(*training(corpus, workdir))
    assert losses(workdir) == losses(in_a_folder)
    assert len(json.loads((workdir / "run.json").read_text())["starts"]) == 2
    assert [each.name for each in (workdir / "tensorboard").iterdir()]
    assert "this run is finished" in run(*training(corpus, workdir))

    text = tmp_path / "text"
    text.write_text("line 7 of file 3: 21\n" * 20)
    scores = []
    for each in (workdir, in_a_folder):
        flags = (f"--checkpoint={each}", f"--tasks=file:{text}", "--json", "--name=x")
        output = run("gpt_pjit.evaluate", *flags)
        scores.append(json.loads(output[output.index("{") :])[f"file:{text}"])  # after Gloo's lines
    assert scores[0] == scores[1]
    exported = {}
    for name, each in (("stored", workdir), ("local", in_a_folder)):
        command = [sys.executable, "-m", "gpt_pjit.hf", "export", f"--checkpoint={each}"]
        command.append(f"--out={tmp_path / name}")
        assert run_process(command).returncode == EXIT_DONE
        exported[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert exported["stored"] == exported["local"]


def test_a_bucket_that_is_not_there_ends_all_with_one_sentence(corpus, bucket):
    missing = bucket.replace("bucket", "missing")
    (end,) = wait_for_end([start(*training(corpus, f"{missing}/run"))], 120)
    assert end.returncode == EXIT_CONFIG
    assert f"there is no bucket {missing}; create it" in end.stderr
    assert "Traceback" not in end.stderr
