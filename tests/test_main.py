"""Training on several hosts of which one differs: all end with the same exit code and line."""

import sys
import time

import pytest

from gpt_pjit.core.errors import EXIT_CONFIG, EXIT_FAULT
from gpt_pjit.core.runtime import read_run
from gpt_pjit.data import Corpus, prepare
from tests.helpers import ROOT, begin, load_config, with_fields
from tests.processes import Process, free_address, member, wait_for_end, wait_for_line

SECONDS = 10  # from the first process that says why, until the last has ended
PROCESSES = 3
ODD = 1  # the process that differs
CONFIG = ROOT / "tests" / "run_config.py"
TEXT = "A text that every host has. " * 100
FIELDS = {
    "model.n_layers": 1,
    "model.d_model": 48,
    "model.d_ff": 48,
    "data.batch_size": 3,
    "data.sequence_length": 16,
    "data.text": "text.txt",
    "data.text_exclude": "",
    "data.tokenizer": "bytes",
    "optim.steps": 2,
    "sample.tokens": 0,
}
PROGRAM = """
import sys
from gpt_pjit.commandline import run_command
from gpt_pjit.core.runtime import hosts
hosts.initialize_devices.__kwdefaults__["limit"] = float(sys.argv.pop(1))
run_command("gpt_pjit.main", prog="gpt_pjit train")
"""


class Pod:
    """Processes of training, each with a folder of its own as its working directory."""

    def __init__(self, folder):
        self.folder, self.address, self.processes = folder, free_address(), []

    def start(self, process, *flags, processes=PROCESSES, limit=60, **variables):
        home = self.folder / f"host{len(self.processes)}"
        home.mkdir(exist_ok=True)
        (home / "text.txt").write_text(TEXT)
        fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
        command = [sys.executable, "-c", PROGRAM, limit, f"--config={CONFIG}", *fields]
        command += [f"--workdir={self.folder / 'run'}", *flags]
        variables = member(process, processes, self.address) | variables
        self.processes.append(Process(command, cwd=home, **variables))

    def ends_with(self, code, words):
        """All end with this code and a line of these words, soon after the first has said it."""
        wait_for_line(self.processes, words)
        said = time.monotonic()
        ends = wait_for_end(self.processes, 150)
        assert time.monotonic() - said < SECONDS
        assert [end.returncode for end in ends] == [code] * len(ends), ends
        lines = [[line for line in end.stderr.splitlines() if words in line] for end in ends]
        assert all(lines), ends
        assert len({line[0] for line in lines}) == 1, lines


@pytest.fixture
def pod(tmp_path):
    pod = Pod(tmp_path)
    yield pod
    for process in pod.processes:
        process.kill_group()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--nonsense", "unrecognized arguments: --nonsense"),
        ("--config.optim.steps=-1", "optim.steps=-1: must be at least 1"),
    ],
)
def test_one_host_fails_before_it_has_joined(pod, flag, words):
    pod.start(0)
    pod.start(2)
    wait_for_line(pod.processes, "waiting for process")
    pod.start(ODD, flag)
    pod.ends_with(EXIT_CONFIG, words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.optim.peak_lr=0.5", f"optim.peak_lr is 0.5 on process {ODD}"),
        ("--workdir=elsewhere", f"which process {ODD} cannot see"),
        ("--from=elsewhere", f"--from is 'elsewhere' on process {ODD}"),
    ],
)
def test_one_host_has_another_config_or_workdir(pod, flag, words):
    for process in range(PROCESSES):
        pod.start(process, *([flag] if process == ODD else ()))
    pod.ends_with(EXIT_CONFIG, words)


@pytest.mark.slow
def test_one_host_does_not_allow_a_change(pod, tmp_path):
    begin(tmp_path / "run", with_fields(load_config(CONFIG), FIELDS | {"optim.steps": 1}))
    for process in range(PROCESSES):
        pod.start(process, *(() if process == ODD else ("--allow_change=optim.steps",)))
    pod.ends_with(EXIT_CONFIG, "optim.steps=2: the run in")
    assert read_run(tmp_path / "run")[0].optim.steps == 1


def other_version(folder):
    """Where another release of optax is installed, by its metadata."""
    info = folder / "site" / "optax-9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: optax\nVersion: 9.9\n")
    return {"PYTHONPATH": f"{ROOT}:{info.parent}"}


@pytest.mark.slow
def test_one_host_has_another_version(pod, tmp_path):
    for process in range(PROCESSES):
        pod.start(process, **(other_version(tmp_path) if process == ODD else {}))
    pod.ends_with(EXIT_CONFIG, f"package optax is '9.9' on process {ODD}")


@pytest.mark.slow
def test_one_host_has_no_such_device(pod):
    """It fails after it has joined, while the others wait for its devices."""
    for process in range(PROCESSES):
        pod.start(process, JAX_PLATFORMS="cuda" if process == ODD else "cpu")
    pod.ends_with(EXIT_CONFIG, "JAX_PLATFORMS=cuda: JAX finds no such device on this machine")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("odd_text", "words"),
    [("Another text. " * 100, f"on process {ODD}"), (None, "so it is not a token dataset")],
)
def test_one_host_has_other_data_or_none(pod, tmp_path, odd_text, words):
    """Each reads `set` in its own folder, as on a disk of its own."""
    for process in range(PROCESSES):
        text = odd_text if process == ODD else TEXT
        home = tmp_path / f"host{process}"
        home.mkdir()
        if text:
            (home / "text.txt").write_text(text)
            prepare(Corpus((str(home / "text.txt"),)), "bytes", home / "set")
        pod.start(process, "--config.data.text=", "--config.data.path=set")
    pod.ends_with(EXIT_CONFIG, words)


@pytest.mark.slow
def test_a_host_is_missing(pod):
    pod.start(0, limit=5)
    pod.start(1)
    pod.ends_with(EXIT_FAULT, "process 2 of 3 did not connect to")


@pytest.mark.slow
def test_a_host_too_many(pod):
    pod.start(0)
    pod.start(3, processes=4)
    pod.start(1)
    pod.ends_with(EXIT_CONFIG, "was started as one of 4 processes, but process 0")
