"""Each protection, switched off, lets its fault through: the tests beside it can fail."""

import numpy as np
import pytest

from gpt_pjit.core.errors import EXIT_DONE, EXIT_INTEGRITY
from tests.chaos.harness import STEPS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("off", ["", "soundness,divergence,skipping"])
def test_a_state_that_is_not_finite(trainer, off):
    run = trainer()
    ended = run.run([{"at": "state", "step": 10, "do": "nan", "process": 0}], off=off)
    assert ended.codes == [EXIT_DONE if off else EXIT_INTEGRITY], ended.errors
    if off:
        step, state = run.final_state()
        assert step == STEPS
        assert np.isnan(state["params"]["blocks"]["mlp"]["up"]["kernel"]).any()


def test_two_trainers_without_the_lock(trainer):
    first, second = trainer(), trainer()
    first.start([{"at": "train", "step": 10, "do": "SIGSTOP"}], off="lock")
    first.await_event("chaos: ")
    assert second.run(off="lock").codes == [EXIT_DONE]
    first.signal(9)
    first.wait()


def test_a_lost_host_without_beats(trainer):
    run = trainer(processes=2, devices=1)
    run.start([{"at": "train", "step": 10, "do": "sleep", "process": 1}], off="beats")
    run.await_event("chaos: ")
    ended = run.wait(25)
    assert ended.codes == [None, None]  # still there


def test_a_signal_that_nobody_follows(trainer):
    run = trainer()
    ended = run.run([{"at": "train", "step": 10, "do": "SIGTERM"}], off="signals")
    assert ended.codes == [EXIT_DONE]
