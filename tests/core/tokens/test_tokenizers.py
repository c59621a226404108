"""Tokenizers lose nothing, treat text as text, and say what is wrong with a file."""

import json

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings, strategies as st

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens import TokenDataset, load_tokenizer
from gpt_pjit.core.tokens.tokenizers import BytesTokenizer, tokenizer_from_bytes
from gpt_pjit.data import train_bpe, train_unigram

TEXTS = [
    "the cat sat on the mat, and the other cat sat on the hat\n" * 20,
    "def cat(mat):\n    return mat + 1\n\n\n" * 20,
    "über naïve 猫が座った\r\n\ttabs  and   spaces " * 20,
]


@pytest.fixture(scope="module")
def bpe_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "small.json"
    train_bpe(TEXTS, 320, path)
    return path


@pytest.fixture(scope="module")
def bpe(bpe_path):
    return load_tokenizer(str(bpe_path))


@pytest.fixture(scope="module")
def unigram(tmp_path_factory):
    path = tmp_path_factory.mktemp("unigram") / "small.model"
    train_unigram(TEXTS, 290, path)
    return load_tokenizer(str(path))


def train_sentencepiece(folder, **options):
    (folder / "text.txt").write_text("\n".join(["a cat sat on a mat"] * 50 + ["and that was all"]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "small"),
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=3,
        **options,
    )
    return folder / "small.model"


@settings(deadline=None)
@given(st.lists(st.text(), max_size=4))
def test_any_text_survives(bpe, texts):
    for tokenizer in (bpe, BytesTokenizer()):
        ids = tokenizer.encode_batch(texts)
        assert [tokenizer.decode(i) for i in ids] == texts
        assert all(i.max(initial=0) < tokenizer.vocab_size for i in ids)


def test_training_twice_gives_the_same_file(bpe_path, tmp_path):
    train_bpe(iter(TEXTS), 320, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == bpe_path.read_bytes()


def test_trained_tokenizer_merges_words_and_starts_with_end_of_text(bpe):
    assert (bpe.name, bpe.vocab_size, bpe.eot_id) == ("small.json", 320, 0)
    assert len(bpe.encode(" the cat sat")) == 3


@settings(deadline=None)
@given(text=st.text().filter(lambda text: "\u2581" not in text))
def test_any_text_survives_a_trained_unigram_model(unigram, text):
    assert unigram.decode(unigram.encode(text)) == text
    assert not unigram.changes(text)
    assert unigram.eot_id == 0


def test_end_of_text_spelled_in_a_text_stays_text(bpe, tmp_path):
    for tokenizer in (bpe, load_tokenizer(str(train_sentencepiece(tmp_path)))):
        ids = tokenizer.encode("a <|endoftext|> cat </s>")
        assert tokenizer.eot_id not in ids
    assert bpe.decode(bpe.encode("a <|endoftext|>")) == "a <|endoftext|>"


def test_ids_without_text_decode_to_nothing(bpe, tmp_path):
    for tokenizer in (bpe, BytesTokenizer(), load_tokenizer(str(train_sentencepiece(tmp_path)))):
        ids = tokenizer.encode("a cat")
        padded = np.concatenate([ids, [tokenizer.eot_id, tokenizer.vocab_size, 99_999]])
        assert tokenizer.decode(padded) == tokenizer.decode(padded.tolist()) == "a cat"


def test_truncation_and_padding_of_a_file_are_ignored(bpe_path, bpe, tmp_path):
    model = tokenizers.Tokenizer.from_file(str(bpe_path))
    model.enable_truncation(3)
    model.enable_padding(length=4096)
    model.save(str(tmp_path / "cut.json"))
    cut = load_tokenizer(str(tmp_path / "cut.json"))
    assert np.array_equal(cut.encode(TEXTS[0]), bpe.encode(TEXTS[0]))


def test_vocabulary_with_holes_counts_to_its_largest_id(bpe_path, tmp_path):
    fields = json.loads(bpe_path.read_text())
    last = max(fields["model"]["vocab"], key=fields["model"]["vocab"].get)
    fields["model"]["vocab"][last] = 500
    (tmp_path / "holes.json").write_text(json.dumps(fields))
    assert load_tokenizer(str(tmp_path / "holes.json")).vocab_size == 501


def test_sentencepiece_ends_text_with_its_end_of_sentence(tmp_path):
    tokenizer = load_tokenizer(str(train_sentencepiece(tmp_path, eos_id=7)))
    assert (tokenizer.name, tokenizer.file, tokenizer.eot_id) == (
        "small.model",
        "tokenizer.model",
        7,
    )
    assert tokenizer.decode(tokenizer.encode("a cat sat")) == "a cat sat"


def test_sha256_is_that_of_the_file(bpe_path, bpe):
    assert bpe.content == bpe_path.read_bytes()
    assert bpe.sha256 != BytesTokenizer().sha256
    assert BytesTokenizer().sha256.startswith("f4e143eb88c7")


def test_missing_end_of_text_lists_the_candidates(bpe_path, tmp_path):
    text = bpe_path.read_text().replace("<|endoftext|>", "<|fin|>")
    (tmp_path / "fin.json").write_text(text)
    with pytest.raises(
        ConfigError, match=r"fin\.json .*\n.*has no token <\|endoftext\|> or .*<\|fin\|>"
    ):
        load_tokenizer(str(tmp_path / "fin.json"))


def test_sentencepiece_without_end_of_sentence_is_refused(tmp_path):
    path = train_sentencepiece(tmp_path, eos_id=-1)
    with pytest.raises(
        ConfigError, match=r"small\.model .*\n.*has no end-of-sentence id.*--eos_id"
    ):
        load_tokenizer(str(path))


@pytest.mark.parametrize("content", [b"[" * 1100, b'{"a":' * 1100 + b"1" + b"}" * 1100])
def test_deep_nesting_is_one_sentence(content, tmp_path):
    with pytest.raises(ConfigError, match="or is damaged"):
        tokenizer_from_bytes("deep.json", content)
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"recursion|Expecting|format"):
        TokenDataset.open(tmp_path)


def test_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"nowhere/x\.json .*\n.*cannot be read: No such file"):
        load_tokenizer("nowhere/x.json")


@pytest.mark.parametrize("name", ["bad.json", "bad.model"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\x00\xff" * 40])
def test_damaged_file_is_named(name, content):
    with pytest.raises(ConfigError, match=f"{name} .*\n.*is not a .* or is damaged"):
        tokenizer_from_bytes(name, content)


def test_unknown_kind_says_what_is_known(tmp_path):
    (tmp_path / "vocab.txt").write_text("a")
    with pytest.raises(
        ConfigError, match=r"vocab\.txt .*\n.*is not bytes, FILE\.json or FILE\.model"
    ):
        load_tokenizer(str(tmp_path / "vocab.txt"))
