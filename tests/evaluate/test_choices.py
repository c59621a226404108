"""Prompts, and what counts as right."""

import numpy as np
import pytest

from gpt_pjit.evaluate.choices import (
    accuracies,
    hellaswag,
    lambada,
    piqa,
    prepare_items,
    read_items,
    winogrande,
)
from gpt_pjit.evaluate.scorer import Scored, Scorer


def test_prompts():
    item = piqa({"goal": "Boil eggs", "sol1": "in water", "sol2": "in air", "label": 0})
    assert item.pairs[1] == ("Question: Boil eggs\nAnswer:", " in air")
    assert (item.gold, item.lengths) == (0, (8, 6))
    assert lambada({"text": "so he said yes"}).pairs == (("so he said", " yes"),)
    item = winogrande(
        {"sentence": "The cup fits the box as _ is big.", "option1": "cup", "option2": "box",
         "answer": "2"}
    )  # fmt: skip
    assert item.pairs[1] == ("The cup fits the box as box", " is big.")
    assert (item.gold, item.lengths) == (1, (27, 27))
    item = hellaswag(
        {
            "activity_label": "Shaving",
            "ctx_a": "[header] How to shave [title] Wash.  Dry.",
            "ctx_b": "the man",
            "endings": [" stops [step] here.", "goes on."],
            "label": "1",
        }
    )
    assert item.pairs[0] == ("Shaving: How to shave. Wash. Dry. The man", " stops here.")
    assert item.gold == 1


def test_the_likeliest_choice_counts_and_by_length():
    item = piqa({"goal": "g", "sol1": "a", "sol2": "a long answer", "label": 1})
    scored = [Scored(np.array([5.0]), np.array([True])), Scored(np.full(3, 3.0), np.zeros(3))]
    assert accuracies([item], scored) == ([False], [True])  # 9 > 5, but 9/13 < 5/1


def test_lambada_is_accuracy_and_perplexity_of_the_last_word(with_logits):
    table = np.zeros((257, 512))
    for here, following in zip(b" ab", b"abb", strict=True):
        table[here, following] = 30.0
    scorer = Scorer(with_logits(table))
    records = [{"text": "x y ab"}, {"text": "x y a"}, {"text": "x y ba"}]
    metrics = prepare_items(scorer, read_items(records, "lambada", "f"), "lambada")().metrics
    # The space itself is never likely; "x y" ends in y, after which all bytes are equal.
    assert metrics["acc"] == 0
    nats = [np.log(512), np.log(512), np.log(512) + 60]
    assert metrics["perplexity"] == pytest.approx(np.exp(np.mean(nats)), rel=1e-4)
    assert metrics["nll_max"] == pytest.approx(30, abs=1e-3)
