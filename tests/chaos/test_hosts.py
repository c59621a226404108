"""A host that is lost or stuck is named, and all others end within seconds, alike."""

import signal

import pytest

from gpt_pjit.core.errors import EXIT_DONE, EXIT_INTEGRITY, EXIT_STUCK
from tests.chaos.harness import STEPS, assert_same_state

pytestmark = pytest.mark.slow
AT = {"at": "train", "step": 10}


def assert_restarts_bit_equal(run, golden):
    assert run.run().codes == [EXIT_DONE] * run.processes
    assert run.losses() == golden.losses()
    assert_same_state(run.final_state(), golden.final_state())


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("sleep", "stuck: process {} ("),
        ("SIGSTOP", "process {} (.*) is lost"),
        ("SIGKILL", "process {} (.*) is lost"),
    ],
)
def test_all_are_out_within_20_seconds(trainer, processes, victim, fault, says):
    golden = trainer("golden", processes=processes, devices=1)
    assert golden.run().codes == [EXIT_DONE] * processes
    run = trainer(processes=processes, devices=1)
    run.start([AT | {"do": fault, "process": victim}])
    run.await_event("chaos: ")
    stopped = [victim] if fault == "SIGSTOP" else []
    others = [n for n in range(processes) if n != victim]
    for number in others:
        run.running[number].wait(60)
    ended = run.wait(0.1 if stopped else 30)
    print(f"{fault} of process {victim} of {processes}: {ended.seconds:.1f} s, {ended.codes}")
    assert ended.seconds < 20
    codes = {ended.codes[number] for number in others}
    if victim == 0 and fault != "sleep":
        assert codes <= {EXIT_STUCK, -signal.SIGABRT}  # JAX aborts without the coordinator
    else:
        assert codes == {EXIT_STUCK}
        named = says.format(victim).replace("(.*)", "(").split("(")[0]
        assert all(named in ended.errors[number] for number in others), ended.errors
    if fault == "sleep":
        assert ended.codes[victim] == EXIT_STUCK
        assert 'tests/chaos/runner.py", line' in ended.errors[victim]  # its stack
    assert_restarts_bit_equal(run, golden)


def test_one_process_that_is_stuck_shows_its_stack(trainer):
    run = trainer()
    ended = run.run([AT | {"do": "sleep"}])
    assert ended.codes == [EXIT_STUCK]
    assert "stuck: no progress for" in ended.errors[0]
    assert "in fire" in ended.errors[0]


@pytest.mark.parametrize("event", ["compile", "evaluate", "save", "data"])
def test_what_is_slow_is_not_stuck(trainer, event):
    """Twice the patience in a place that may take long."""
    run = trainer(processes=2, devices=1)
    ended = run.run([{"at": event, "do": "slow", "process": 1 if event != "data" else 0}])
    assert ended.codes == [EXIT_DONE] * 2, ended.errors


def test_nan_on_one_host_ends_all_and_leaves_the_good_checkpoints(trainer):
    run = trainer(processes=2, devices=1)
    ended = run.run([{"at": "state", "step": 10, "do": "nan", "process": 1}])
    assert ended.codes == [EXIT_INTEGRITY] * 2, ended.errors
    assert all("holds NaN or infinity" in e or "not finite" in e for e in ended.errors)
    assert run.run().codes == [EXIT_DONE] * 2
    assert list(run.losses()) == list(range(1, STEPS + 1))


def test_a_flipped_bit_of_a_replica_is_named(trainer):
    run = trainer(processes=2, devices=1, flags={"partition.layout": "ddp"})
    ended = run.run([{"at": "state", "step": 10, "do": "flip", "process": 1}])
    assert ended.codes == [EXIT_INTEGRITY] * 2, ended.errors
    assert "differs from its replicas" in ended.errors[0]
