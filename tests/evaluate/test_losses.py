"""A failure that accuracy hides is in the distribution of losses, and is said."""

from pathlib import Path

import jax
import numpy as np
import pytest

from gpt_pjit.evaluate.losses import WORST, loss_metrics, perplexity, ratio_stderr, warning
from gpt_pjit.evaluate.report import ModelResults, report
from gpt_pjit.evaluate.scorer import Scorer
from gpt_pjit.evaluate.texts import Document, prepare_bits

OWN_TEXT = Path(__file__).read_text(encoding="utf-8")
LARGE = 4112.0  # between 4096 and 8192 bfloat16 knows multiples of 32 only; this is halfway


def bigrams(text):
    """Log-frequencies of each byte after each other one."""
    ids = np.frombuffer(text.encode(), np.uint8)
    counts = np.full((257, 512), 1e-4)
    np.add.at(counts, (ids[:-1], ids[1:]), 1)
    counts[256] = 1
    return np.log(counts / counts.sum(axis=1, keepdims=True))


def shifted(logits):
    """Large logits; softmax does not see a shift, in float32."""
    return logits - logits.max(axis=-1, keepdims=True) + LARGE + 0.02


def cast(logits):
    """To bfloat16 and back; XLA may leave two casts out, but not this."""
    return jax.lax.reduce_precision(shifted(logits), exponent_bits=8, mantissa_bits=7)


def results(with_logits, table, change):
    scorer = Scorer(with_logits(table, change))
    scored = prepare_bits(scorer, [Document.of(OWN_TEXT[:2000])], scorer.window, "text")()
    details = {"text": scored.details}
    settings = {"name": "m", "step": 1, "checkpoint": "c", "dtype": "float32", "tasks": details}
    return ModelResults("m", {"text": scored.metrics}, settings)


def warnings(results):
    return [block.text for block in report(results, []) if getattr(block, "style", "") == "bad"]


def test_logits_in_bfloat16_are_flagged_while_accuracy_stays(with_logits):
    table = bigrams(OWN_TEXT)
    sound = results(with_logits, table, shifted)
    broken = results(with_logits, table, cast)
    well, badly = sound.tasks["text"], broken.tasks["text"]
    assert badly["acc"] == well["acc"] > 0.2
    assert well["nll_max"] < 20 < 30 < badly["nll_max"]
    assert well["share_above_20"] == 0
    assert badly["share_above_20"] > 0.3
    assert not warnings(sound)
    (line,) = warnings(broken)
    assert "% of the tokens cost more than 20 nats" in line
    assert "Suspect softmax, logits or parameters in bfloat16" in line


def test_worst_tokens_have_their_text(with_logits):
    table = np.zeros((257, 512))
    table[:, ord("#")] = -15.0  # the model cannot believe a #
    text = "a plain text, and then # comes; " * 2 + "no more of it " * 20
    scorer = Scorer(with_logits(table))
    result = prepare_bits(scorer, [Document.of(text)], scorer.window, "text")()
    worst = result.details["worst_tokens"]
    assert len(worst) == WORST
    assert [w["text"] for w in worst[:3]].count("#") == 2
    assert worst[0]["before"].endswith("then ")
    assert worst[0]["nll"] == result.metrics["nll_max"] > worst[2]["nll"] + 10


def test_tail_and_quantiles():
    nll = np.array([1.0] * 990 + [30.0] * 10)
    metrics = loss_metrics(nll, np.arange(1000) // 10)  # all ten belong together
    assert metrics["nll_quantile_0.5"] == 1
    assert metrics["share_above_20"] == 0.01
    assert metrics["loss_share_above_20"] == pytest.approx(300 / 1290)
    assert "1.000% of the tokens" in warning(metrics)
    # As if one of 100 items had it all.
    assert metrics["share_above_20_stderr"] == pytest.approx(0.01)
    assert metrics["loss_share_above_20_stderr"] > 0.1
    rare = np.array([6.0] * 99999 + [21.0])  # bad luck
    assert warning(loss_metrics(rare, np.arange(100000))) is None
    assert warning({"acc": 0.5}) is None


def test_standard_errors_are_those_of_repeated_draws():
    rng = np.random.default_rng(0)
    sizes = rng.integers(50, 150, (4000, 40)).astype(float)
    parts = sizes * 2 + rng.normal(0, 10, sizes.shape)
    ratios = parts.sum(1) / sizes.sum(1)
    estimates = [ratio_stderr(p, s) for p, s in zip(parts[:200], sizes[:200], strict=True)]
    assert np.mean(estimates) == pytest.approx(ratios.std(), rel=0.05)
    assert perplexity("p", 2.0, 0.1)["p_stderr"] == pytest.approx(0.1 * np.exp(2.0))
    assert ratio_stderr(np.ones(1), np.ones(1)) is None
