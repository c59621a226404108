"""Bits per byte: against a plain computation, and with the bytes of the file."""

import math

import numpy as np
import pytest

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.evaluate.batches import Request
from gpt_pjit.evaluate.scorer import Scorer
from gpt_pjit.evaluate.statistics import mean, perplexity, ratio_stderr
from gpt_pjit.evaluate.tasks import last
from gpt_pjit.evaluate.texts import Document, decoded, prepare_texts
from gpt_pjit.evaluate.wikitext import detokenize, pages

TEXT = "Dass es regnet, wei\N{LATIN SMALL LETTER SHARP S} man; why, nobody knows.\n"


def test_a_short_text_is_scored_as_a_whole(trained, plain):
    document = Document.of("to be or not to be")
    result = prepare_texts(Scorer(trained), [document], 32, "text")()
    ids = list(document.text.encode())
    nll, greedy = plain(Request((256, *ids), len(ids)))
    metrics = result.metrics
    assert metrics["bits_per_byte"] == pytest.approx(nll.mean() / math.log(2), rel=1e-6)
    assert metrics["token_perplexity"] == pytest.approx(math.exp(nll.mean()), rel=1e-5)
    assert metrics["word_perplexity"] == pytest.approx(math.exp(nll.sum() / 6), rel=1e-5)
    assert metrics["acc"] == greedy.mean()
    assert metrics["bits_per_byte_stderr"] is None  # of one window there is none


@pytest.mark.parametrize("stride", [32, 20, 1])
def test_each_byte_once_whatever_the_stride(trained, stride):
    text = TEXT * 3
    documents = [Document.of(text), Document.of(TEXT[:5])]
    result = prepare_texts(Scorer(trained), documents, stride, "text")()
    assert result.details["bytes"] == len(text.encode()) + 5
    assert result.details["tokens"] == result.details["bytes"]  # the tokenizer is that of bytes
    assert (result.details["window"], result.details["stride"]) == (32, stride)
    assert result.metrics["bits_per_byte_stderr"] > 0


def test_a_standard_error_does_not_shrink_with_the_stride(with_logits):
    """Overlapping windows are no more text: neighbours, here in runs of 64, stay together."""
    table = np.zeros((257, 512))
    table[:, ord("a")] = 9
    scorer = Scorer(with_logits(table))
    document = Document.of(("a" * 64 + "b" * 64) * 10)
    wide, narrow = (
        prepare_texts(scorer, [document], stride, "text")().metrics["bits_per_byte_stderr"]
        for stride in (32, 4)
    )
    assert narrow == pytest.approx(wide, rel=1e-4)


def test_bytes_are_those_of_the_original(trained):
    page = "it 's a 2 @-@ way @,@ street ."
    result = prepare_texts(Scorer(trained), [Document.of(page, detokenize(page))], 32, "text")()
    assert detokenize(page) == "it's a 2-way,street ."
    assert (result.details["bytes"], result.details["words"]) == (len(page), 9)
    nats = result.metrics["bits_per_byte"] * math.log(2) * len(page)
    assert math.log(result.metrics["token_perplexity"]) * len(detokenize(page)) == (
        pytest.approx(nats, rel=1e-6)
    )


def test_tokens_of_one_document_are_not_independent(with_logits):
    """Half the documents are all right, half all wrong; a long word has no perplexity."""
    table = np.zeros((257, 512))
    table[:, ord("a")] = 9
    documents = [Document.of(letter * 200) for letter in "aabb"]
    metrics = prepare_texts(Scorer(with_logits(table)), documents, 32, "text")().metrics
    assert metrics["acc"] == 0.5
    assert metrics["acc_stderr"] == pytest.approx(math.sqrt(1 / 3) / 2)
    assert metrics["word_perplexity"] is metrics["word_perplexity_stderr"] is None  # above e^700
    assert math.isfinite(metrics["byte_perplexity"])


def test_pages_begin_at_titles():
    raw = " \n = One = \n \n text \n = = Part = = \n more \n = Two = \n end \n"
    assert pages(raw) == [" = One = \n \n text \n = = Part = = \n more ", " = Two = \n end \n"]
    assert sum(map(len, pages(raw))) == len(raw) - len(" \n") - 1  # blank start; one line end


def test_the_end_of_a_file_begins_with_a_whole_character():
    content = TEXT.encode() * 2
    sharp_s = content.index(b"\xc3")
    assert last(content, len(content) - sharp_s) == content[sharp_s:]
    assert last(content, len(content) - sharp_s - 1) == content[sharp_s + 2 :]
    assert last(content, 1000) == content
    assert last(b"\x93", 5) == b"\x93"  # nothing is cut here, and nothing lost unsaid


@pytest.mark.parametrize(("content", "place"), [(b"ab\xffcd", 2), (b"\x93ab", 0), (b"caf\xe9", 3)])
def test_what_is_no_utf8_is_said_and_not_left_out(content, place):
    with pytest.raises(ConfigError, match=rf"f is no UTF-8 text at byte {place} .*; convert it"):
        decoded(content, "f")


def test_standard_errors_are_those_of_repeated_draws():
    rng = np.random.default_rng(0)
    sizes = rng.integers(50, 150, (4000, 40)).astype(float)
    parts = sizes * 2 + rng.normal(0, 10, sizes.shape)
    ratios = parts.sum(1) / sizes.sum(1)
    estimates = [ratio_stderr(p, s) for p, s in zip(parts[:200], sizes[:200], strict=True)]
    assert np.mean(estimates) == pytest.approx(ratios.std(), rel=0.05)
    assert mean("acc", [True, False, True, True])["acc_stderr"] == pytest.approx(0.25)
    assert perplexity("p", 2.0, 0.1)["p_stderr"] == pytest.approx(0.1 * math.exp(2.0))
    assert ratio_stderr(np.ones(1), np.ones(1)) is None
