"""The exported tokenizer.json gives our ids, and an import finds our tokenizer again."""

import io
import json

import pytest
import sentencepiece
import tokenizers

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens import BytesTokenizer, load_tokenizer, tokenizer_from_bytes
from gpt_pjit.data import train_bpe, train_unigram
from gpt_pjit.hf.exporting import tokenizer_files
from gpt_pjit.hf.importing import read_tokenizer

TEXTS = [
    "def main(argv):\n\treturn  0\r\n",
    " Größe, naïve, 你好, \U0001f600 and \x00\x7f\x85\u00ad\u2028",
    "",
    "   spaces   ",
    "line\n\n\nline",
    "<0x41>/<unk>, </s> and <|endoftext|> are text",
]


def tokenizer_of(kind, folder):
    if kind == "bytes":
        return BytesTokenizer()
    corpus = [f"{text} the quick brown fox number {i}" for text in TEXTS for i in range(60)]
    path = folder / f"tokenizer.{'json' if kind == 'bpe' else 'model'}"
    (train_bpe if kind == "bpe" else train_unigram)(corpus, 340, path)
    return load_tokenizer(str(path))


@pytest.mark.parametrize("kind", ["bytes", "bpe", "unigram"])
def test_ids_and_text_are_the_same(kind, tmp_path):
    ours = tokenizer_of(kind, tmp_path)
    files = tokenizer_files(ours, 96)
    theirs = tokenizers.Tokenizer.from_buffer(files["tokenizer.json"])
    theirs.encode_special_tokens = True  # what AutoTokenizer's split_special_tokens sets
    for text in TEXTS:
        ids = theirs.encode(text).ids
        assert ids == ours.encode(text).tolist(), text
        assert theirs.decode(ids) == text == ours.decode(ids)
    folder = tmp_path / "export"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    again = read_tokenizer(folder)
    assert (again.sha256, again.eot_id) == (ours.sha256, ours.eot_id)


def test_what_cuts_texts_or_adds_tokens_is_not_exported(tmp_path):
    """As the files of encoders do, and of Llama."""
    plain = tokenizer_of("bpe", tmp_path)
    model = tokenizers.Tokenizer.from_buffer(plain.content)
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", plain.eot_id)]
    )
    model.enable_truncation(3)
    model.enable_padding(length=5)
    ours = tokenizer_from_bytes("tokenizer.json", model.to_str().encode())
    theirs = tokenizers.Tokenizer.from_buffer(tokenizer_files(ours, 96)["tokenizer.json"])
    for text in TEXTS[:3]:
        assert theirs.encode(text).ids == ours.encode(text).tolist()
    model.no_truncation()
    model.no_padding()
    model.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    content = model.to_str().encode()
    kept = tokenizer_files(tokenizer_from_bytes("tokenizer.json", content), 96)
    assert kept["tokenizer.json"] == content


def test_a_tokenizer_without_the_fields_that_have_a_default_is_read(tmp_path):
    ours = tokenizer_of("bpe", tmp_path)
    fields = json.loads(ours.content)
    assert fields.pop("normalizer") is None
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    again = read_tokenizer(tmp_path)
    assert again.encode(TEXTS[0]).tolist() == ours.encode(TEXTS[0]).tolist()


def test_of_two_files_the_one_that_can_be_exported_is_read(tmp_path):
    """The .model of Llama 2 puts a space before a text, and is no unigram."""
    ours = tokenizer_of("bpe", tmp_path)
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 60),
        model_writer=content,
        vocab_size=90,
        model_type="bpe",
        minloglevel=2,
    )
    for model in (content.getvalue(), b"damaged"):
        (tmp_path / "tokenizer.model").write_bytes(model)
        assert read_tokenizer(tmp_path).sha256 == ours.sha256


def test_the_older_files_of_gpt2_are_read(tmp_path):
    ours = tokenizer_of("bpe", tmp_path)
    model = tokenizers.Tokenizer.from_buffer(ours.content).model
    folder = tmp_path / "old"
    folder.mkdir()
    model.save(str(folder))
    again = read_tokenizer(folder)
    for text in TEXTS:
        assert again.encode(text).tolist() == ours.encode(text).tolist()
    assert again.eot_id == ours.eot_id
    vocabulary = json.loads((folder / "vocab.json").read_text())
    vocabulary["</s>"] = vocabulary.pop("<|endoftext|>")  # as OPT calls it
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    assert read_tokenizer(folder).eot_id == ours.eot_id
    settings = tokenizer_files(read_tokenizer(folder), 96)["tokenizer_config.json"]
    assert b'"eos_token": "</s>"' in settings
    (folder / "merges.txt").write_text("#version: 0.2\nno such\n")
    with pytest.raises(ConfigError, match=r"vocab.json and merges.txt in .* are damaged: "):
        read_tokenizer(folder)
    (folder / "merges.txt").unlink()
    with pytest.raises(
        ConfigError, match=r"has no tokenizer: tokenizer.json, tokenizer.model, or vocab"
    ):
        read_tokenizer(folder)
