"""What holds up a run is named within two log intervals: a slow host, slow data, a slow disk.

And the times that a run writes are those of a clock outside.
"""

import signal
import socket
import time

import pytest

from gpt_pjit.core.errors import EXIT_DONE
from gpt_pjit.report.lines import goodput, read_timeline
from tests.chaos.harness import EVERY, STEPS

pytestmark = pytest.mark.slow
FROM, INTERVAL = 9, 4  # the first step that is slow; steps of a log interval
FLAGS = {"log.every": INTERVAL, "eval.every": STEPS, "checkpoint.every": STEPS}
HOST = socket.gethostname()
HELD_UP = "process 1 (HOST) holds up the others: its devices idle"


@pytest.mark.parametrize(
    ("event", "process", "named"),
    [
        pytest.param("train", 1, HELD_UP, marks=pytest.mark.long),
        ("batch", 1, HELD_UP),
        pytest.param("batch", None, "devices idle", marks=pytest.mark.long),
        pytest.param("write", 0, HELD_UP.replace("1", "0"), marks=pytest.mark.long),
    ],
)
def test_what_holds_up_a_run_is_named(trainer, event, process, named):
    run = trainer(processes=2, devices=1, flags=FLAGS)
    seconds = 2.0 if event == "write" else 0.5  # once an interval, or each step
    slow = {"at": event, "do": "drag", "process": process, "step": FROM, "seconds": seconds}
    run.start([slow])
    run.await_event(f"warning: {named.replace('HOST', HOST)}")
    # What follows the end of an interval, as a write does, is of the next one.
    first = FROM - 1 + INTERVAL * (event == "write")
    assert max(line["step"] for line in run.lines()) <= first + 2 * INTERVAL
    ended = run.wait()
    assert ended.codes == [EXIT_DONE] * 2, ended.errors
    (said,) = [text for text in ended.errors[0].splitlines() if " idle " in text]
    wanted = {"train": "the dispatch", "batch": "data", "write": "the writing"}
    assert f"waiting for {wanted[event]}" in said
    print(said)


def test_times_agree_with_a_clock_outside(trainer):
    """Over a kill: the wall, what was redone, and each span of steps, by when its line appears."""
    killed, seen = EVERY * 3 + 3, []
    run = trainer(environment={"CHAOS_PACE": "0.4"})
    start = time.monotonic()
    ended = run.run([{"at": "train", "step": killed, "do": "SIGKILL"}])
    assert ended.codes == [-signal.SIGKILL]
    down = time.monotonic()
    time.sleep(2)
    run.start()
    while run.running[0].poll() is None:
        lines = read_timeline(run.workdir)
        seen += [(time.monotonic(), line) for line in lines[len(seen) :]]
        time.sleep(0.005)
    assert run.wait().codes == [EXIT_DONE]
    found, stop = goodput(read_timeline(run.workdir)), seen[-1][0]
    print(found, stop - start, stop - down)
    assert seen[-1][1]["what"] == "end"
    assert found["wall"] == pytest.approx(stop - start, rel=0.02)
    steps = [line for line in read_timeline(run.workdir) if line["what"] == "steps"]
    again = [line["seconds"] for line in steps if line["start"] == 1 and line["from"] >= 3 * EVERY]
    assert len(again) == 1  # the step before the last was fetched one step late
    assert found["redone"] == pytest.approx(sum(again))
    assert 2 < found["down"] < 2 + 3 * 0.4 + 3
    assert found["useful"] > 0.4 * (STEPS - 4)
    mine = [(at, line) for at, line in seen if line["start"] == 2]
    first = next(n for n, (_, line) in enumerate(mine) if line["what"] == "compile")
    last = max(n for n, (_, line) in enumerate(mine) if line["what"] == "steps")
    outside = mine[last][0] - mine[first][0]
    assert sum(line["seconds"] for _, line in mine[first + 1 : last + 1]) == pytest.approx(
        outside, rel=0.02
    )
