"""Tokens to text as they come: whole characters, stop strings, and the reason why it ended."""

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from gpt_pjit.core.tokens import load_tokenizer
from gpt_pjit.data import train_bpe, train_unigram
from gpt_pjit.generate import Continuation

TEXT = "Grüße, 世界! 🙂 and on it goes; the end\n"
BYTES = load_tokenizer("bytes")
EOT = BYTES.eot_id


@pytest.fixture(scope="module", params=["bytes", "bpe", "unigram"])
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    if request.param == "bytes":
        return BYTES
    texts = [Path(__file__).read_text()]
    if request.param == "bpe":
        train_bpe(texts, 400, folder / "tokenizer.json")
        return load_tokenizer(str(folder / "tokenizer.json"))
    train_unigram(texts, 400, folder / "tokenizer.model")
    return load_tokenizer(str(folder / "tokenizer.model"))


def write(tokenizer, ids, chunk, limit=1000, stop=(), prompt=()):
    """The continuation, and the text that was shown after each chunk."""
    row = Continuation(tokenizer, prompt, limit, stop)
    shown = []
    for start in range(0, len(ids), chunk):
        row.add(list(ids[start : start + chunk]))
        shown.append(row.text)
    return row, shown


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1000])
def test_text_only_grows_by_whole_characters(tokenizer, chunk):
    ids = tokenizer.encode(TEXT).tolist()
    row, shown = write(tokenizer, [*ids, tokenizer.eot_id, *ids], chunk)
    assert (row.text, row.finish_reason, row.tokens) == (TEXT, "end", ids)
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(shown))
    assert "\ufffd" not in "".join(shown)


def test_a_space_after_the_prompt_is_kept(tokenizer):
    prompt, ids = tokenizer.encode("and on").tolist(), tokenizer.encode(" it goes").tolist()
    row, _ = write(tokenizer, ids, 2, prompt=[tokenizer.eot_id, *prompt])
    assert row.text == " it goes"


def test_a_space_is_kept_that_a_decoder_drops_from_the_beginning_of_a_text(tmp_path):
    """That of sentencepiece with its defaults, which put a space before every text."""
    model = io.BytesIO()
    lines = Path(__file__).read_text().splitlines()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=200, minloglevel=2
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer.model"))
    prompt, ids = tokenizer.encode("and on").tolist(), tokenizer.encode("it goes").tolist()
    assert tokenizer.decode(ids) == "it goes"
    row, _ = write(tokenizer, ids, 1, prompt=prompt)
    assert row.text == " it goes"


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (("; the",), "Grüße, 世界! 🙂 and on it goes"),
        (("界",), "Grüße, 世"),
        (("absent", "on it", "!"), "Grüße, 世界"),
        (("Gr",), ""),
        (("e", "üße, 世"), "Grüß"),
        (("the end\n",), "Grüße, 世界! 🙂 and on it goes; "),
        (("the end\n\n",), TEXT),
    ],
)
def test_stop_strings_end_the_text_across_tokens_and_chunks(tokenizer, stop, expected, chunk):
    ids = tokenizer.encode(TEXT).tolist()
    row, shown = write(tokenizer, [*ids, tokenizer.eot_id], chunk, stop=stop)
    assert row.text == expected
    assert row.finish_reason == ("end" if expected == TEXT else "stop")
    assert all(expected.startswith(text) for text in shown), "something was shown and taken back"
    # The tokens end with the one that completes the stop string.
    text = tokenizer.decode(row.tokens)
    assert text.startswith(expected)
    if expected != TEXT:
        assert any(s in text for s in stop)
        assert not any(s in tokenizer.decode(row.tokens[:-1]) for s in stop)


def test_the_limit_and_what_comes_after_the_end():
    row, _ = write(BYTES, b"abcdef", 4, limit=5)
    assert (row.text, row.finish_reason) == ("abcde", "length")
    row, _ = write(BYTES, [97, EOT, 98], 1)
    assert (row.text, row.tokens, row.finish_reason) == ("a", [97], "end")
    row, _ = write(BYTES, [*b"ab", EOT], 3, limit=2)
    assert (row.text, row.finish_reason) == ("ab", "length")
    row, _ = write(BYTES, "é".encode()[:1], 1, limit=1)
    assert row.text == "\ufffd"  # the end: no other byte will come


def test_a_character_that_the_prompt_begins_is_shown():
    row, shown = write(BYTES, b"\xa9s", 1, prompt=b"caf\xc3")
    assert (row.text, shown[0]) == ("és", "é")


@pytest.mark.parametrize("prompt", ["caf\ufffd", "\ufffd\ufffd", "\ufffd and\ufffd"])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_what_the_prompt_ends_in_is_not_written_again(tokenizer, prompt, chunk):
    """Also where it ends in the sign that stands for the bytes of an unfinished character."""
    ids, written = tokenizer.encode(prompt).tolist(), tokenizer.encode("\ufffd s").tolist()
    row, shown = write(tokenizer, [*written, tokenizer.eot_id], chunk, prompt=ids)
    whole = tokenizer.decode([*ids, *written])
    assert whole == prompt + row.text
    assert all(row.text.startswith(text) for text in shown)


def test_bytes_that_never_become_a_character_are_shown_once():
    row, shown = write(BYTES, [*b"s", EOT], 1, prompt=b"caf\xc3")
    assert (row.text, shown) == ("s", ["s", "s"])
    row, shown = write(BYTES, [*b"\x82\xac", EOT], 1, prompt=b"\xe2")
    assert (row.text, shown) == ("\u20ac", ["", "\u20ac", "\u20ac"])


def test_random_bytes_give_the_same_in_any_chunks():
    draw = np.random.default_rng(0)
    for _ in range(50):
        ids = draw.choice([97, 98, 0xC3, 0xA9, 0xE2, 0x82, 0xAC], 30).tolist()
        ends = [
            write(BYTES, [*ids, EOT], chunk, stop=("ab", "éa", "aba"))[0] for chunk in (1, 4, 30)
        ]
        assert len({(row.text, row.finish_reason, tuple(row.tokens)) for row in ends}) == 1
