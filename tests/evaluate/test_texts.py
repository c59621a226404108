"""Bits per byte against a plain computation; longer windows; the published files."""

import dataclasses
import hashlib
import importlib.util
import math

import numpy as np
import pytest

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.evaluate import texts
from gpt_pjit.evaluate.harness import require_lm_eval
from gpt_pjit.evaluate.scorer import Request, Scorer
from gpt_pjit.evaluate.tasks import prepare_jobs
from gpt_pjit.evaluate.texts import Document, last, pages, prepare_bits, prepare_lengths

TEXT = "Dass es regnet, wei\N{LATIN SMALL LETTER SHARP S} man; why, nobody knows.\n"


def test_a_short_text_is_scored_as_a_whole(trained, plain):
    document = Document.of("to be or not to be")
    result = prepare_bits(Scorer(trained), [document], 32, "text")()
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
    result = prepare_bits(Scorer(trained), documents, stride, "text")()
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
        prepare_bits(scorer, [document], stride, "text")().metrics["bits_per_byte_stderr"]
        for stride in (32, 4)
    )
    assert narrow == pytest.approx(wide, rel=1e-4)


def test_bytes_are_those_of_the_original(trained):
    page, read = "it 's a 2 @-@ way @,@ street .", "it's a 2-way,street ."
    result = prepare_bits(Scorer(trained), [Document.of(page, read)], 32, "text")()
    assert (result.details["bytes"], result.details["words"]) == (len(page), 9)
    nats = result.metrics["bits_per_byte"] * math.log(2) * len(page)
    assert math.log(result.metrics["token_perplexity"]) * len(read) == (
        pytest.approx(nats, rel=1e-6)
    )


def test_tokens_of_one_document_are_not_independent(with_logits):
    """Half the documents are all right, half all wrong; a long word has no perplexity."""
    table = np.zeros((257, 512))
    table[:, ord("a")] = 9
    documents = [Document.of(letter * 200) for letter in "aabb"]
    metrics = prepare_bits(Scorer(with_logits(table)), documents, 32, "text")().metrics
    assert metrics["acc"] == 0.5
    assert metrics["acc_stderr"] == pytest.approx(math.sqrt(1 / 3) / 2)
    assert metrics["word_perplexity"] is metrics["word_perplexity_stderr"] is None  # above e^700
    assert math.isfinite(metrics["byte_perplexity"])


LINES = "".join(f"line {i} of a text that goes on and on\n" for i in range(20))


def lengths_of(scorer, *documents):
    return prepare_lengths(scorer, [Document.of(text) for text in documents], "lengths:t")()


def test_longer_windows_read_the_same_tokens_in_the_memory_that_was_asked(trained, monkeypatch):
    made = []
    monkeypatch.setattr(
        texts, "Scorer", lambda *a, **sizes: made.append(sizes) or Scorer(*a, **sizes)
    )
    result = lengths_of(Scorer(trained, rows=6), LINES, "short")
    assert [(sizes["window"], sizes["rows"]) for sizes in made] == [(128, 1), (64, 3), (32, 6)]
    assert result.details["tokens"] == len(LINES) // 128 * 128
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


def test_a_bigram_model_gains_nothing_but_at_the_borders(with_logits):
    """Its loss depends on the last token alone, which only the first of a window lacks."""
    result = lengths_of(Scorer(with_logits(np.zeros((257, 512)))), LINES)
    assert result.metrics["loss_change_4x"] == pytest.approx(0, abs=1e-6)


def test_lengths_that_cannot_be_measured_are_said(trained):
    with pytest.raises(ConfigError, match=r"needs a document of 128 tokens, 4 times"):
        lengths_of(Scorer(trained), "short")
    model = dataclasses.replace(trained.config.model, positions="learned")
    config = dataclasses.replace(trained.config, model=model)
    learned = dataclasses.replace(trained, config=config)
    with pytest.raises(ConfigError, match=r"lengths:t: the model has learned 32 positions"):
        lengths_of(Scorer(learned), LINES)


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is here")
def test_without_lm_eval_one_message_names_it():
    with pytest.raises(ConfigError, match=r"1 problem:\n  piqa, mmlu need lm-eval: pip .*\[eval\]"):
        require_lm_eval(["piqa", "mmlu"])


def test_a_published_text_is_its_end_and_known_by_its_hash(tmp_path, monkeypatch, trained):
    monkeypatch.setattr(texts, "TEST_BYTES", 40)
    (tmp_path / "text8").mkdir()
    (tmp_path / "text8" / "text8").write_text(TEXT * 3)
    words = r"text8: .*/text8/text8 has md5 .*, the published file 3bea.*; file:.* scores it"
    with pytest.raises(ConfigError, match=words):
        prepare_jobs(["text8"], Scorer(trained), data_dir=tmp_path)
    digest = hashlib.md5((TEXT * 3).encode(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(texts.TEXTS, "text8", ("text8", f"md5:{digest}"))
    (job,) = prepare_jobs(["text8"], Scorer(trained), data_dir=tmp_path)
    result = job()["text8"]
    assert result.details["bytes"] == 40
    assert result.details["data"]["checked"]
    wrong = ["enwik8", "file:nothing.txt", "lengths:piqa"]
    with pytest.raises(ConfigError, match="3 problems") as error:
        prepare_jobs(wrong, Scorer(trained), data_dir=tmp_path)
    assert "enwik8: there is no " in str(error.value)
    assert "nothing.txt cannot be read: No such file" in str(error.value)
    assert "lengths:piqa: lengths: takes wikitext2, text8" in str(error.value)
    with pytest.raises(ConfigError, match="text8 needs its published file text8; pass --data_dir"):
        prepare_jobs(["text8"], Scorer(trained))


def test_the_end_of_a_file_begins_with_a_whole_character():
    content = TEXT.encode() * 2
    sharp_s = content.index(b"\xc3")
    assert last(content, len(content) - sharp_s) == content[sharp_s:]
    assert last(content, len(content) - sharp_s - 1) == content[sharp_s + 2 :]
    assert last(content, 1000) == content
    assert last(b"\x93", 5) == b"\x93"  # nothing is cut here, and nothing lost unsaid


@pytest.mark.parametrize(("content", "place"), [(b"ab\xffcd", 2), (b"\x93ab", 0), (b"caf\xe9", 3)])
def test_text_that_is_not_utf8_is_refused(content, place, tmp_path, trained):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"f is not UTF-8 text at byte {place} of what is sco"):
        prepare_jobs([f"file:{tmp_path / 'f'}"], Scorer(trained))


def test_pages_begin_at_titles():
    raw = " \n = One = \n \n text \n = = Part = = \n more \n = Two = \n end \n"
    assert pages(raw) == [" = One = \n \n text \n = = Part = = \n more ", " = Two = \n end \n"]
    assert sum(map(len, pages(raw))) == len(raw) - len(" \n") - 1  # blank start; one line end
