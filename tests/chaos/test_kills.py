"""`kill -9` at any moment changes no bit of a run, loses at most one interval, leaves no orphan."""

import numpy as np
import pytest

from gpt_pjit.core.checkpoints import saved_steps
from gpt_pjit.core.errors import EXIT_DONE
from tests.chaos.harness import EVAL_EVERY, EVERY, STEPS, assert_same_run

EVENTS = ("train", "train", "train", "save", "commit", "evaluate", "compile")
LONG = [pytest.mark.slow, pytest.mark.long]
SHAPES = [
    pytest.param(1, "zero", 1, id="one kill", marks=pytest.mark.slow),
    pytest.param(2, "fsdp", 1, id="one kill, two processes", marks=pytest.mark.slow),
    pytest.param(2, "fsdp", 3, id="three kills, two processes", marks=LONG),
    pytest.param(1, "zero", 17, id="one process, zero", marks=LONG),
    pytest.param(1, "fsdp", 12, id="one process, fsdp", marks=LONG),
    pytest.param(2, "zero", 12, id="two processes, zero", marks=LONG),
    pytest.param(2, "fsdp", 8, id="two processes, fsdp", marks=LONG),
    pytest.param(4, "fsdp", 10, id="four processes, fsdp", marks=LONG),
]


def random_fault(rng, done, processes):
    """Somewhere in the steps that are left."""
    event = rng.choice(EVENTS)
    fault = {"at": event, "do": "SIGKILL", "process": int(rng.integers(processes))}
    if event == "train":
        fault["step"] = int(rng.integers(done + 1, min(done + 2 * EVERY, STEPS) + 1))
    elif event == "save":
        fault["step"] = done + EVERY
    return fault


@pytest.mark.parametrize(("processes", "layout", "kills"), SHAPES)
def test_kills_change_no_bit(trainer, golden, processes, layout, kills):
    options = {
        "processes": processes,
        "devices": 2 if processes == 1 else 1,
        "flags": {"partition.layout": layout},
    }
    expected = golden(**options)
    rng = np.random.default_rng(kills)
    number, killed = 0, 0
    while killed < kills:
        number += 1
        run = trainer(f"run{number}", **options)
        finished = False
        while not finished:
            steps = saved_steps(run.workdir / "checkpoints")
            done = steps[-1] if steps else 0
            faults = [random_fault(rng, done, processes)] if killed < kills else []
            ended = run.run(faults)
            finished = ended.codes == [EXIT_DONE] * processes
            killed += not finished
            assert finished or faults, ended.errors
            assert run.survivors() == []
            reached = max([line["step"] for line in run.lines()], default=0) if steps else 0
            steps = saved_steps(run.workdir / "checkpoints")
            # One interval may be under way, and one more not yet be written.
            assert reached - (steps[-1] if steps else 0) <= 2 * EVERY, (reached, steps)
        assert_same_run(run, expected)
        assert list(run.losses()) == list(range(1, STEPS + 1))
        assert run.losses("validation/loss") == expected.losses("validation/loss")
        assert list(run.losses("validation/loss")) == list(range(EVAL_EVERY, STEPS + 1, EVAL_EVERY))


@pytest.mark.slow
def test_a_kill_after_the_last_save_loses_neither_validation_nor_finish(trainer, golden):
    killed = trainer("killed")
    # The evaluation of the last step comes after its save.
    last = [{"at": "evaluate", "do": "report"}] * (STEPS // EVAL_EVERY - 1)
    ended = killed.run([*last, {"at": "evaluate", "do": "SIGKILL"}])
    assert ended.codes == [-9], ended.errors
    assert STEPS not in killed.losses("validation/loss")
    ended = killed.run()
    assert ended.codes == [EXIT_DONE], ended.errors
    assert killed.losses("validation/loss") == golden().losses("validation/loss")
    again = killed.run()
    assert "this run is finished" in again.errors[0]


@pytest.mark.slow
@pytest.mark.long
def test_hosts_come_and_go(trainer, golden):
    """2 -> 4 -> 1 -> 2 processes: the same examples, and bit for bit up to the first change."""
    run = trainer("run", processes=2, devices=1)
    for processes, stop in ((2, 7), (4, 12), (1, 17), (2, None)):
        run.processes, run.devices = processes, 2 if processes == 1 else 1
        faults = [{"at": "train", "step": stop, "do": "SIGTERM", "process": 0}] if stop else []
        run.run(faults)
    losses, expected = run.losses(), golden(processes=2, devices=1).losses()
    assert list(losses) == list(range(1, STEPS + 1))
    assert [losses[s] for s in range(1, 8)] == [expected[s] for s in range(1, 8)]
    assert losses == pytest.approx(expected, abs=1e-5)
