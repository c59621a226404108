"""What a host does, and reads, does not grow with the number of hosts: counted at 4 and at 32.

Real processes of one CPU device each train on a corpus, evaluate a text, and generate.
"""

import json

import pytest

from tests.processes import run

pytestmark = [pytest.mark.slow, pytest.mark.long]

# Runs three commands in each process, and counts: operations on the files and folders of FOLDER, by
# the first part of their path; rows built in Python, by place; bytes sent; bytes read.
COUNTED = """
import json, os, sys
from collections import Counter
from importlib import import_module

folder, workdir, hosts = sys.argv[1], sys.argv[2], int(os.environ["JAX_NUM_PROCESSES"])
counts = Counter()

def count(path):
    if isinstance(path, str | os.PathLike):
        path = os.path.abspath(path)
        if "/array_metadatas/" in path or "/ocdbt.process_" in path:
            counts["operations of Orbax on one file of each host"] += 1
        elif path.startswith(folder + "/"):
            counts["operations on " + path[len(folder) + 1 :].split("/")[0]] += 1

def audit(event, arguments):
    if event in ("open", "os.scandir", "os.listdir", "os.mkdir", "os.rename", "os.remove"):
        count(arguments[0])

sys.addaudithook(audit)
stat = os.stat
os.stat = lambda path, *rest, **named: (count(path), stat(path, *rest, **named))[1]

import jax
from jax.experimental import multihost_utils
from gpt_pjit.commandline import run_command
from gpt_pjit.core.tokens import TokenSplit
generate = import_module("gpt_pjit.generate.command")
scorer = import_module("gpt_pjit.evaluate.scorer")

def wrapped(owner, name, key, number):
    function = getattr(owner, name)
    def counting(*arguments, **named):
        found = function(*arguments, **named)
        counts[key] += number(arguments, found)
        return found
    setattr(owner, name, counting)

wrapped(TokenSplit, "read", "rows of training and validation", lambda given, _: len(given[1]))
wrapped(scorer, "to_process_0", "bytes of results sent", lambda given, _: len(given[0]))
wrapped(multihost_utils, "assert_equal", "compares", lambda *_: 1)
placed = scorer.Scorer._placed

def counting_rows(self, text, *rest):
    def counted(row):
        counts["rows of evaluation"] += 1
        return text(row)
    counts["batches of evaluation"] += 1
    return placed(self, counted, *rest)

scorer.Scorer._placed = counting_rows
import_module("gpt_pjit.trained").initialize_devices = lambda *_, **__: None
load = generate.load_trained

def loaded(*arguments, **named):
    trained = load(*arguments, **named)
    counts["compares"] = 0
    return trained

generate.load_trained = loaded

def run(command, *arguments):
    try:
        run_command(f"gpt_pjit.{command}", command, arguments)
    except SystemExit as stop:
        assert not stop.code, stop.code

fields = {
    "data.text": folder + "/corpus/**/*.txt", "data.text_exclude": "", "data.tokenizer": "bytes",
    "data.validation_fraction": 0.2, "data.sequence_length": 32, "data.batch_size": 2 * hosts,
    "model.n_layers": 1, "model.d_model": 32, "model.d_ff": 64, "model.vocab_size": 264,
    "optim.steps": 3, "optim.warmup_steps": 1, "eval.every": 3, "eval.batches": 1,
    "checkpoint.every": 3, "sample.tokens": 0,
}
flags = [f"--config.{name}={value}" for name, value in fields.items()]
run("main", "--config=tests/run_config.py", f"--workdir={workdir}", *flags)
run("evaluate.command", f"--checkpoint={workdir}", f"--tasks=file:{folder}/text.txt", "--json")
prompts = f"--prompt_file={folder}/prompt.txt"
run("generate.command", f"--checkpoint={workdir}", prompts, "--num_samples=9", "--json")
(io,) = (line for line in open("/proc/self/io") if line.startswith("rchar"))
counts["bytes read"] = int(io.split()[1])
with open(f"{folder}/counts/{hosts}-{jax.process_index()}", "w") as file:
    json.dump(counts, file)
"""
N_FILES = 300


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """`counted[hosts]`: the counts of each of 4 and of 32 hosts."""
    folder = tmp_path_factory.mktemp("scaling")
    for number in range(N_FILES):
        path = folder / "corpus" / str(number % 20) / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"line {i} of file {number}\n" for i in range(40)))
    (folder / "counts").mkdir()
    (folder / "text.txt").write_text("".join(f"sentence {i}.\n" for i in range(2000)))
    (folder / "prompt.txt").write_text("Once")
    (folder / "counted.py").write_text(COUNTED)
    found = {}
    for hosts in (4, 32):
        flags = [f"--processes={hosts}", "--devices=1", "--module=counted"]
        command = ["launch/local.sh", *flags, folder, f"{folder}/runs/{hosts}"]
        done = run(command, seconds=1500, PYTHONPATH=str(folder))
        assert done.returncode == 0, done.stderr[-3000:]
        paths = [folder / "counts" / f"{hosts}-{process}" for process in range(hosts)]
        found[hosts] = [json.loads(path.read_text()) for path in paths]
    return found


@pytest.mark.parametrize("name", ["corpus", "text.txt", "prompt.txt"])
def test_only_host_0_touches_its_input(counted, name):
    key = f"operations on {name}"
    few, many = ([counts.get(key, 0) for counts in counted[hosts]] for hosts in (4, 32))
    assert few[0] == many[0] > 0
    assert not any(few[1:] + many[1:])


def test_the_rows_that_a_host_builds_do_not_grow(counted):
    for hosts, all_counts in counted.items():
        for counts in all_counts:
            n_batches = counts["batches of evaluation"]
            assert n_batches >= 3, hosts
            assert counts["rows of evaluation"] <= 4 * n_batches  # --rows, on one device
            assert counts["rows of training and validation"] == 2 * (3 + 1)
            assert counts["compares"] == 0
    sent = [sum(c["bytes of results sent"] for c in counted[hosts]) for hosts in (4, 32)]
    assert sent[1] < sent[0] + 32 * 1000  # the results once, and a header from each host


def test_what_a_host_reads_does_not_grow(counted):
    for key in ("operations on runs", "bytes read"):
        few, many = (max(counts[key] for counts in counted[hosts]) for hosts in (4, 32))
        assert many <= 1.1 * few, key
