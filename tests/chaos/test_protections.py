"""Each protection, switched off, lets its fault through: the tests beside it can fail."""

import json

import numpy as np
import pytest

from gpt_pjit.core.errors import EXIT_DONE, EXIT_INTEGRITY
from tests.chaos.harness import STEPS

pytestmark = pytest.mark.slow
END_OF_TEXT = 256  # of the tokenizer of bytes


@pytest.mark.long
@pytest.mark.parametrize("off", ["", "skipping"])
def test_a_step_that_is_not_finite(trainer, off):
    """Steps that hold the end of a document, some of all, have a loss of NaN."""
    run = trainer(environment={"CHAOS_NAN_TOKEN": str(END_OF_TEXT)})
    ended = run.run(off=off)
    steps = {line["step"]: line for line in run.lines() if "train/loss" in line}
    skipped = [step for step, line in steps.items() if line.get("train/skipped")]
    finite = [step for step, line in steps.items() if line["train/loss"] is not None]
    assert skipped
    if off:
        assert max(finite, default=0) < min(skipped)  # it never recovers
        assert ended.codes == [EXIT_INTEGRITY]
    else:
        assert all(f"step {step} skipped" in ended.errors[0] for step in skipped)
        assert max(finite) > min(skipped)
    text = (run.workdir / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert all(json.loads(line) for line in text.splitlines())


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
    first.start_until_fault({"at": "train", "step": 10, "do": "SIGSTOP"}, off="lock")
    assert second.run(off="lock").codes == [EXIT_DONE]
    first.signal(9)
    first.wait()


@pytest.mark.long
def test_a_lost_host_without_beats(trainer):
    run = trainer(processes=2, devices=1)
    run.start_until_fault({"at": "train", "step": 10, "do": "sleep", "process": 1}, off="beats")
    ended = run.wait(25)
    assert ended.codes == [None, None]  # still there


def test_a_signal_that_nobody_follows(trainer):
    run = trainer()
    ended = run.run([{"at": "train", "step": 10, "do": "SIGTERM"}], off="signals")
    assert ended.codes == [EXIT_DONE]
