"""Losses at 1, 2 and 4 times the training context are of the same tokens."""

import dataclasses

import numpy as np
import pytest

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.evaluate import lengths
from gpt_pjit.evaluate.lengths import prepare_lengths
from gpt_pjit.evaluate.scorer import Scorer
from gpt_pjit.evaluate.texts import Document

TEXT = "".join(f"line {i} of a text that goes on and on\n" for i in range(20))


def test_longer_windows_read_the_same_tokens(trained):
    scorer = Scorer(trained, rows=2)
    result = prepare_lengths(scorer, [Document.of(TEXT), Document.of("short")], "lengths:t")()
    tokens = len(TEXT) // 128 * 128
    assert result.details["tokens"] == tokens
    assert {f"loss_{m}x" for m in (1, 2, 4)} < set(result.metrics)
    assert result.metrics["loss_4x_stderr"] > 0
    change = result.metrics["loss_4x"] - result.metrics["loss_1x"]
    assert result.metrics["loss_change_4x"] == pytest.approx(change, abs=1e-9)
    by_position = result.details["by_position"]
    assert [(p["from"], p["to"]) for p in by_position if p["length"] == "1x"] == [
        (0, 8), (8, 16), (16, 24), (24, 32),
    ]  # fmt: skip
    assert len(by_position) == 4 + 8 + 16
    assert all(0 < part["loss_stderr"] < 0.5 for part in by_position)
    longest = [p["loss"] for p in by_position if p["length"] == "4x"]
    assert np.mean(longest) == pytest.approx(result.metrics["loss_4x"])


def test_longer_windows_take_no_more_memory_than_asked_and_come_first(trained, monkeypatch):
    made = []
    monkeypatch.setattr(
        lengths, "Scorer", lambda *a, **sizes: made.append(sizes) or Scorer(*a, **sizes)
    )
    prepare_lengths(Scorer(trained, rows=6), [Document.of(TEXT)], "lengths:t")()
    assert [(sizes["window"], sizes["rows"]) for sizes in made] == [(128, 1), (64, 3), (32, 6)]


def test_a_bigram_model_gains_nothing_but_at_the_borders(with_logits):
    """Its loss depends on the last token alone, which only the first of a window lacks."""
    table = np.zeros((257, 512))
    scorer = Scorer(with_logits(table))
    result = prepare_lengths(scorer, [Document.of(TEXT)], "lengths:t")()
    assert result.metrics["loss_change_4x"] == pytest.approx(0, abs=1e-6)


def test_what_cannot_be_measured_is_said(trained):
    with pytest.raises(ConfigError, match=r"needs a document of 128 tokens, 4 times"):
        prepare_lengths(Scorer(trained), [Document.of("short")], "lengths:t")
    model = dataclasses.replace(trained.config.model, positions="learned")
    config = dataclasses.replace(trained.config, model=model)
    learned = dataclasses.replace(trained, config=config)
    with pytest.raises(ConfigError, match=r"tasks='lengths:t': model.positions is learned and"):
        prepare_lengths(Scorer(learned), [Document.of(TEXT)], "lengths:t")
    assert Scorer(trained, window=128).window == 128
