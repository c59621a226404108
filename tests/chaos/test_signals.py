"""SIGTERM, SIGHUP and Ctrl-C: one agreed step is saved on all hosts, and all end alike."""

import pytest

from gpt_pjit.core.checkpoints import saved_steps
from gpt_pjit.core.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_PREEMPTED
from tests.chaos.harness import STEPS

pytestmark = pytest.mark.slow
CODES = {"SIGTERM": EXIT_PREEMPTED, "SIGHUP": EXIT_PREEMPTED, "SIGINT": EXIT_INTERRUPTED}
EVENTS = {
    "data": 0,
    "compile": 0,
    "train": 9,
    "evaluate": 6,
    "save": 4,
}  # and the steps done by then
MANY = [(number, event, 1) for event in EVENTS for number in CODES]
MANY += [("SIGTERM", event, 4) for event in EVENTS] + [(number, "train", 4) for number in CODES]
SOME = [("SIGTERM", event, 1) for event in EVENTS] + [("SIGINT", "train", 2)]


@pytest.mark.parametrize(
    ("number", "event", "processes"),
    [
        pytest.param(*case, marks=[] if case in SOME else pytest.mark.long)
        for case in dict.fromkeys(SOME + MANY)
    ],
)
def test_a_signal_ends_all_alike_and_nothing_is_lost(trainer, number, event, processes):
    run = trainer(
        processes=processes,
        devices=2 if processes == 1 else 1,
        compiles=event == "compile",
        # The others hear of a signal within a second or two, of steps that take milliseconds here.
        environment={"CHAOS_PACE": "1"} if processes > 1 else {},
    )
    fault = {"at": event, "do": number, "process": processes - 1}
    if event == "data":
        fault["process"] = 0  # the only one that tokenises
    if event == "train":
        fault["step"] = EVENTS[event]
    run.start_until_fault(fault)
    ended = run.wait(60)
    assert ended.codes == [CODES[number]] * processes, ended.errors
    assert ended.seconds < 20
    steps = saved_steps(run.workdir / "checkpoints")
    if EVENTS[event]:
        assert EVENTS[event] <= steps[-1] <= EVENTS[event] + 4
        assert f"stopped and saved at step {steps[-1]}" in ended.errors[0]
        assert max(run.losses()) == steps[-1]
    else:
        assert steps == []
    print(f"{number} at {event}, {processes} processes: {ended.seconds:.1f} s")


def test_the_second_signal_ends_a_run_at_once(trainer):
    run = trainer()
    ended = run.run([{"at": "train", "step": 9, "do": "SIGTERM", "times": 2}])
    assert ended.codes == [128 + 15]
    assert "stopped without saving" in ended.errors[0]
    assert run.run().codes == [EXIT_DONE]
    assert list(run.losses()) == list(range(1, STEPS + 1))
