"""Evaluation and generation on the shapes of real pods: what one process gives, and one end."""

import json
import sys
import time

import pytest

from gpt_pjit.core.errors import EXIT_CONFIG, EXIT_DONE, EXIT_FAULT
from tests.helpers import make_workdir, tiny
from tests.processes import run

pytest.importorskip("libtpu", reason="wants libtpu, of the extra `plan`")
pytestmark = [
    pytest.mark.tpu_compiler,
    pytest.mark.slow,
    pytest.mark.long,
]

PODS = [("v4-32", 1), ("v4-32", 4), ("v5e-16", 2), ("v6e-8", 4)]
TEXT = "".join(f"sentence {i} of a text for several processes.\n" for i in range(80))
PROMPTS = ["--prompt=Once upon", "--prompt=A", "--num_samples=3", "--temperature=1"]
# The command `NAME` of the package, whose process FAILING cannot feed its rows.
FAILING = """
import sys
from importlib import import_module
import jax
from gpt_pjit.commandline import run_command

def failing(feed):
    def fed(*arguments):
        if jax.process_index() == 2:
            raise RuntimeError("boom")
        return feed(*arguments)
    return fed

for name, function in (("evaluate.scorer", "global_array"), ("generate.stream", "global_batch")):
    module = import_module(f"gpt_pjit.{name}")
    setattr(module, function, failing(getattr(module, function)))
room = sys.argv.pop(1)
run_command(f"gpt_pjit.{room}.command", room)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of random parameters, a text, and a module that fails."""
    folder = tmp_path_factory.mktemp("pods")
    make_workdir(folder / "run", tiny(model={"vocab_size": 264}))
    (folder / "text.txt").write_text(TEXT)
    (folder / "failing.py").write_text(FAILING)
    return folder


def launched(folder, start, *flags):
    """What a command has written and its seconds; `start` is the beginning of its line."""
    began = time.monotonic()
    command = [*start, *flags, f"--checkpoint={folder}/run"]
    done = run(command, seconds=600, PYTHONPATH=str(folder))
    return done, time.monotonic() - began


def on_pod(topology, module):
    return ["launch/local.sh", f"--topology={topology}", f"--module={module}"]


def record(folder, start, *flags):
    done, _ = launched(folder, start, *flags, "--json")
    assert done.returncode == EXIT_DONE, done.stderr[-2000:]
    return json.loads(done.stdout[done.stdout.index("{\n") :])  # XLA's own lines come first


def evaluated(folder, start, *flags):
    """The metrics of each task, with the losses of its worst tokens."""
    tasks = f"--tasks=file:{folder}/text.txt,lengths:file:{folder}/text.txt"
    found = record(folder, start, tasks, "--rows=2", "--stride=24", *flags)
    settings = found.pop("settings")
    worst = settings["tasks"][f"file:{folder}/text.txt"]["worst_tokens"]
    return settings["mesh"], found | {"worst": {str(i): w["nll"] for i, w in enumerate(worst)}}


@pytest.fixture(scope="module")
def alone(folder):
    python = [sys.executable, "-m"]
    _, metrics = evaluated(folder, [*python, "gpt_pjit.evaluate"])
    texts = record(folder, [*python, "gpt_pjit.generate"], *PROMPTS, "--max_new_tokens=40")
    return metrics, texts["results"]


@pytest.mark.parametrize(("topology", "tensor"), PODS)
def test_a_pod_evaluates_and_generates_what_one_process_does(folder, alone, topology, tensor):
    metrics, texts = alone
    flag = f"--tensor={tensor}"
    mesh, found = evaluated(folder, on_pod(topology, "gpt_pjit.evaluate"), flag)
    assert mesh["tensor"] == tensor
    for task, values in metrics.items():
        assert found[task] == pytest.approx(values, rel=1e-5, abs=1e-5), task
    generate = on_pod(topology, "gpt_pjit.generate")
    assert record(folder, generate, *PROMPTS, "--max_new_tokens=40", flag)["results"] == texts


@pytest.mark.parametrize("room", ["evaluate", "generate"])
def test_a_host_that_fails_ends_all(folder, room):
    tasks = f"--tasks=file:{folder}/text.txt"
    flags = {"evaluate": [tasks, f"--out={folder}/{room}"], "generate": PROMPTS}[room]
    done, seconds = launched(folder, on_pod("v5e-16", "failing"), room, *flags)
    assert done.returncode == EXIT_FAULT, done.stderr[-2000:]
    assert done.stderr.count(": RuntimeError: boom\n") == 4, done.stderr[-2000:]
    assert seconds < 120  # most of it to start 4 processes on 2 cores


@pytest.mark.parametrize("room", ["evaluate", "generate"])
def test_a_mistake_that_process_0_finds_ends_all(folder, room):
    missing = f"{folder}/missing.txt"
    flag = {"evaluate": f"--tasks=file:{missing}", "generate": f"--prompt_file={missing}"}[room]
    done, seconds = launched(folder, on_pod("v5e-16", f"gpt_pjit.{room}"), flag)
    assert done.returncode == EXIT_CONFIG, done.stderr[-2000:]
    assert done.stderr.count("missing.txt cannot be read: No such file") == 4, done.stderr[-2000:]
    assert seconds < 120
