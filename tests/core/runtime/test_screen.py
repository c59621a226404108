"""What a run shows on a terminal: a real one, whose screen an emulator reads."""

import io
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time

import jax.numpy as jnp
import pyte
import pytest

from gpt_pjit.core import console
from gpt_pjit.core.checkpoints import saved_steps
from gpt_pjit.core.console import Progress, say, warn
from gpt_pjit.core.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED
from gpt_pjit.core.runtime import Timeline, Watch, metrics, screen
from gpt_pjit.core.runtime.metrics import StepLog
from gpt_pjit.core.runtime.planned import Planned
from gpt_pjit.core.runtime.screen import Cells, trend
from tests.helpers import ROOT, tiny, write_texts
from tests.processes import run_flags

HIDES_THE_CURSOR = b"\x1b[?25l"
OWN_TERMINAL = "import os, sys; os.login_tty(0); os.execv(sys.argv[1], sys.argv[1:])"
SPEED = {"throughput/tokens_per_second": 303_110.0, "throughput/data_wait": 0.003}


class Terminal:
    def __init__(self, columns, rows=24):
        self.reader, writer = pty.openpty()
        self.file = os.fdopen(writer, "w")
        self._screen, self.raw = pyte.Screen(columns, rows), b""
        self._stream = pyte.ByteStream(self._screen)

    def close(self):
        self.file.close()
        os.close(self.reader)

    def lines(self, wait=0.2):
        """What stands there now."""
        while select.select([self.reader], [], [], wait)[0]:
            try:
                new = os.read(self.reader, 2**16)
            except OSError:  # the last process has gone
                break
            self.raw += new
            self._stream.feed(new)
        assert HIDES_THE_CURSOR not in self.raw  # so that it is there whatever ends the run
        shown = [line.rstrip() for line in self._screen.display]
        return shown[: max((n for n, line in enumerate(shown, 1) if line), default=0)]


@pytest.fixture
def terminal(monkeypatch):
    """Makes a terminal, which is standard output and error of this process."""
    terminals = []

    def make(columns=100, **environment):
        made = Terminal(columns)
        terminals.append(made)
        usual = {"COLUMNS": str(columns), "LINES": "24", "TERM": "xterm"}
        for name, value in (usual | environment).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "stdout", made.file)
        monkeypatch.setattr(sys, "stderr", made.file)
        fresh = console._Console(highlight=False, soft_wrap=True)
        monkeypatch.setattr(console, "_console", fresh)
        return made

    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    yield make
    for made in terminals:
        made.close()


def some_cells():
    cells = Cells(every=10, start=100)
    for step in range(120):
        found = {"train/grad_norm": 0.4123, "train/learning_rate": 5.9e-4}
        cells.hear(found | {"train/loss": 10 - step / 20})
    cells.hear(SPEED | {"time/step": 1.733, "time/plan": 1.65, "throughput/mfu": 0.412})
    cells.hear({"validation/loss": 4.25})
    cells.hear({"validation/loss": 4.5})
    return cells


@pytest.mark.parametrize(("columns", "a_row"), [(60, 1), (100, 2), (160, 4)])
def test_a_block_stays_in_its_place_under_warnings(terminal, columns, a_row):
    shown, values = terminal(columns), some_cells()() | {"long": "x" * 60}
    with Progress("step", 50_000, cells=lambda: values) as progress:
        for step in (12_340, 12_341):
            progress.frame(step, at_once=True)
        warn("disk is slow")
        progress.frame(12_342, at_once=True)
        first, bar, *below = shown.lines()
    assert first == "warning: disk is slow"
    assert bar.startswith("step ━")
    assert "12,342/50,000 0:00:00" in bar
    assert len(bar) == columns
    assert len(below) == -(-len(values) // a_row)
    pairs = [line[at : at + 38] for line in below for at in range(0, len(line), 38)]
    assert {pair[:15].strip(): pair[15:].strip() for pair in pairs} == {
        name: value[:22] for name, value in values.items()
    }


def test_the_cells():
    cells = some_cells()
    cells.hear({"train/loss": float("nan"), "train/skipped": 1.0})
    cells.saved(120)
    assert cells() == {
        "loss": "nan █▇▇▆▅▅▄▄▃▂▂▁",
        "validation": "4.5000, best 4.2500",
        "learning rate": "5.90e-04",
        "gradient norm": "0.412",
        "tokens/s": "303,110",
        "MFU": "41.2%",
        "step time": "1.73 s, plan +5%",
        "data wait": "0.3%",
        "checkpoint": "120, 0 s ago",
        "skipped": "1 steps",
    }


def test_cells_of_which_nothing_is_known(monkeypatch):
    cells = Cells(every=10, start=0)
    assert {*cells().values()} == {"-", "- ", "0 steps"}
    assert "MFU" not in cells()
    assert Cells(every=10, start=40)()["checkpoint"] == "40"
    assert trend([2.0] * 5, 2) == "▁▁▁"
    cells.saved(7)
    now = time.monotonic()
    monkeypatch.setattr(screen.time, "monotonic", lambda: now + 600)
    assert cells()["checkpoint"] == "7, 10 min ago"


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, None])
def test_plain_lines_elsewhere(terminal, monkeypatch, environment):
    shown = terminal(**environment or {})
    if environment is None:
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        monkeypatch.setenv("FORCE_COLOR", "1")
    with Progress("step", 50, cells=some_cells()) as progress:
        progress.frame(49, "save", at_once=True)
        progress.update(49, "loss 2.0000")  # sooner than 15 s after the start
        progress.update(50, "loss 1.0000  9,000 tokens/s")
    shown.lines()
    written = sys.stdout.getvalue() if environment is None else shown.raw.decode()
    (line,) = written.splitlines()
    assert line == "step 50/50 loss 1.0000  9,000 tokens/s  0:00 left".replace("50 l", "50  l", 1)


def test_a_frame_a_second(terminal):
    shown, threads = terminal(), threading.active_count()
    with Progress("step", 10**6, cells=some_cells()) as progress:
        assert threading.active_count() == threads  # none draws beside the steps
        shown.lines()
        start = len(shown.raw)
        for step in range(20):
            progress.frame(step)
        shown.lines()
        assert shown.raw.count(b"left", start) <= 2
    assert "19/1,000,000" in shown.lines()[0]  # the last frame tells the truth


def test_what_goes_to_a_file_goes_there(terminal, monkeypatch):
    shown, file = terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    with Progress("step", 50, cells=some_cells()):
        warn("disk is slow")
        say("a word")
    assert file.getvalue() == "warning: disk is slow\n"
    assert shown.lines()[0] == "a word"


@pytest.fixture
def log(terminal, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "read_run", lambda _: (None, {"starts": [{}]}))
    plan = Planned(0.001, tmp_path)

    def make(start=0):
        shown = terminal()
        config = tiny(log={"every": 2}, optim={"steps": 50})
        return StepLog(config, tmp_path, 1000, start, Timeline(), Watch(60), plan), shown

    return make


def take(log, steps):
    for step in steps:
        found = {"train/loss": 1, "train/grad_norm": 1, "train/learning_rate": 0.5}
        log.push(step, {name: jnp.float32(x) for name, x in found.items()})


def test_a_run_says_what_it_does_and_a_failure_leaves_the_screen(log):
    made, shown = log()
    assert shown.lines()[0].startswith("compile ━")

    def fail():
        with made:
            take(made, range(1, 8))
            made.write("validation", 7, {"validation/loss": 3.0})
            with made.pause("save", 7):
                assert any(line.startswith("save ━") for line in shown.lines())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert sys.stderr is shown.file
    *above, bar, _, _, _, _, _ = shown.lines()
    assert "step 7  validation  loss 3.0000" in above
    assert bar.startswith("step ━")
    assert "7/50" in bar
    assert " s, plan " in "".join(shown.lines())
    warn("the end")
    assert shown.lines()[-1] == "warning: the end"


def test_the_best_validation_is_that_of_all_starts(log):
    for start, loss in ((0, 2.5), (4, 3.5)):
        made, _ = log(start)
        with made:
            take(made, range(start + 1, start + 5))
            made.write("validation", start + 4, {"validation/loss": loss})
    made, _ = log(8)
    made.close()
    made.progress.close()
    assert "validation" in made.written
    assert made.cells()["validation"] == "3.5000, best 2.5000"


@pytest.mark.slow
@pytest.mark.parametrize("closed", [False, True])
def test_ctrl_c_on_a_terminal_and_a_terminal_that_is_closed(tmp_path, closed):
    write_texts(tmp_path, files=8, lines=80)
    shown = Terminal(80)
    fields = {"data.text": f"{tmp_path}/*.txt", "optim.steps": 10**6, "checkpoint.every": 10**6}
    fields |= {"model.n_layers": 1, "model.d_model": 32, "model.d_ff": 32}
    command = [sys.executable, "-m", "gpt_pjit.main", *run_flags(tmp_path / "run", fields)]
    plain = {name: x for name, x in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", OWN_TERMINAL, *command],
        stdin=shown.file,
        stdout=shown.file,
        stderr=shown.file,
        cwd=ROOT,
        env=plain | {"TERM": "xterm", "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
    )
    shown.file.close()
    deadline = time.monotonic() + 120
    try:
        while not any(line.startswith("step ━") for line in shown.lines()):
            assert time.monotonic() < deadline
        if closed:
            os.close(shown.reader)
            assert process.wait(60) == EXIT_PREEMPTED
            assert saved_steps(tmp_path / "run" / "checkpoints")
            return
        process.send_signal(signal.SIGINT)
        while process.poll() is None:
            shown.lines()
    finally:
        process.kill()
        process.wait()
    lines = shown.lines()
    os.close(shown.reader)
    assert process.returncode == EXIT_INTERRUPTED
    assert any(line.startswith("Ctrl-C: saving; press again") for line in lines)
    assert sum("/1,000,000" in line for line in lines) == 1
    assert lines[-1].startswith("stopped and saved at step")
