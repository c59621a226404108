"""From text files to a set: which files, which split, only once, and errors in words."""

import importlib
import itertools
import os
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from gpt_pjit.config import Config, DataConfig, replaced
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens import TokenDataset, load_tokenizer, open_data
from gpt_pjit.data import (
    Corpus,
    corpus,
    prepare as prepare_corpus,
    prepare_text,
    readers,
    train_bpe,
)
from gpt_pjit.data.readers import Part, read_items

TEXTS = {
    "a.txt": "first document\n",
    "b.txt": "zweites Dokument: \u00fcber\r\n",
    "deep/er/c.txt": "third\n\n",
    "deep/d.md": "# not text\n",
}
ROOMY = 300
NO_MARK = st.characters(codec="utf-8", exclude_characters="\ufeff")


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """A folder of texts, which is the working directory."""
    folder = tmp_path / "texts"
    for name, text in TEXTS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    monkeypatch.chdir(folder)
    return folder


def prepare(config, folder):
    return prepare_corpus(Corpus.of_config(config), config.tokenizer, folder)


def opened(config, folder, vocab_size):
    """The set of `data.text`, made as for a run, or that of `data.path`."""
    if config.text:
        prepare_text(replaced(Config(data=config), {"model.vocab_size": vocab_size}), folder)
    (dataset,) = open_data(config, folder, vocab_size).datasets
    return dataset


def pieces(part):
    return (piece.text for piece in read_items(part, "text", can_cut=True))


def config(text="**/*.txt", split="tail", fraction=0.2, **fields):
    return DataConfig(text=text, validation_split=split, validation_fraction=fraction, **fields)


def documents(dataset, name):
    """The decoded documents of a split, with whether end-of-text ends them."""
    split, tokenizer = dataset.splits[name], dataset.tokenizer()
    offsets = split.document_offsets(0, split.documents + 1).astype(int)
    ids = split.read(np.array([0]), split.tokens)[0]
    found = [ids[start:stop] for start, stop in itertools.pairwise(offsets)]
    return [(tokenizer.decode(d), bool(len(d)) and d[-1] == dataset.eot_id) for d in found]


def test_files_become_documents_in_the_order_of_their_paths(texts, tmp_path):
    dataset = opened(config(fraction=0.0), tmp_path / "data", ROOMY)
    expected = [(TEXTS[name], True) for name in ("a.txt", "b.txt", "deep/er/c.txt")]
    assert documents(dataset, "train") == expected
    assert dataset.splits["train"].source_bytes == sum(len(t.encode()) for t, _ in expected)
    assert dataset.splits["validation"].tokens == 0


def test_patterns_join_and_exclusion_matches_whole_paths(texts, tmp_path):
    some = config(text="deep/*.md *.txt deep/**/*.txt", text_exclude=r".*er/.*|a", fraction=0.0)
    dataset = opened(some, tmp_path / "data", ROOMY)
    assert [d for d, _ in documents(dataset, "train")] == [
        TEXTS[name] for name in ("a.txt", "b.txt", "deep/d.md")
    ]


def test_the_tail_is_the_last_tenth_of_a_file(tmp_path):
    text = "".join(chr(97 + i % 26) for i in range(1_234))
    (tmp_path / "one.txt").write_text(text)
    one = config(text=str(tmp_path / "one.txt"), fraction=0.1)
    dataset = opened(one, tmp_path / "data", ROOMY)
    cut = int(1_234 * 0.9)
    assert documents(dataset, "train") == [(text[:cut], False)]
    assert documents(dataset, "validation") == [(text[cut:], True)]


@settings(max_examples=40, deadline=None)
@given(
    contents=st.lists(st.text(NO_MARK, max_size=30), min_size=1, max_size=5),
    fraction=st.integers(0, 99).map(lambda percent: percent / 100),
)
def test_the_tail_cuts_no_character_and_loses_none(tmp_path_factory, contents, fraction):
    folder = tmp_path_factory.mktemp("tail")
    found = []
    for i, text in enumerate(contents):
        path = folder / str(i)
        path.write_bytes(text.encode())
        found.append(corpus.CorpusFile(str(path), len(text.encode()), 0, ""))
    parts = readers._split_tail(found, fraction)
    assert [part.split for part in parts] == sorted(part.split for part in parts)
    assert "".join(text for part in parts for text in pieces(part)) == "".join(contents)
    assert sum(part.ends for part in parts) == len(contents)
    train = sum(part.stop - part.start for part in parts if part.split == "train")
    assert 0 <= sum(file.size for file in found) * (1 - fraction) - train < 4


def test_documents_keep_their_split_when_others_are_added(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(60):
        (folder / f"{i}.txt").write_text(f"document {i}")
    some = config(text=f"{folder}/*.txt", split="documents", fraction=0.2)
    before = documents(opened(some, tmp_path / "before", ROOMY), "validation")
    assert 4 < len(before) < 20
    for i in range(60):
        (folder / f"new {i}.txt").write_text(f"more {i}")
        shutil.copy(folder / f"{i}.txt", folder / f"copy of {i}.txt")
    after = documents(opened(some, tmp_path / "after", ROOMY), "validation")
    old = [document for document in after if document[0].startswith("document")]
    assert sorted(old) == sorted(before * 2)
    assert len(after) > len(old)


@pytest.mark.parametrize("split", ["documents", "tail"])
def test_bpe_is_trained_on_training_documents_only(tmp_path, split):
    for i in range(40):
        (tmp_path / f"{i:02}.txt").write_text(f"{chr(97 + i % 26) * 5}{i} " * 30)
    some = config(text=f"{tmp_path}/*.txt", split=split, fraction=0.5, tokenizer="bpe:400")
    dataset = opened(some, tmp_path / "data", 400)
    train = [text for text, _ in documents(dataset, "train")]
    train_bpe(train, 400, tmp_path / "expected.json")
    assert dataset.tokenizer().content == (tmp_path / "expected.json").read_bytes()
    assert dataset.info.tokenizer.name == "bpe-400.json"


ALPHABET = "ab \n\t.'1\u00e9\u732b"
WORDS = st.builds(
    "{}{}{}".format,
    st.sampled_from("a.1\u732b"),
    st.text(alphabet=ALPHABET, max_size=6),
    st.sampled_from("b'2"),
)


@pytest.fixture(scope="module")
def runs_tokenizer(tmp_path_factory):
    """A BPE that knows runs of white space, so that a run cut in two has other tokens."""
    path = tmp_path_factory.mktemp("runs") / "bpe.json"
    random = np.random.default_rng(0)
    train_bpe(["".join(random.choice(list(ALPHABET), 20_000))], 600, path)
    return load_tokenizer(str(path))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    words=st.lists(WORDS, min_size=15, max_size=40),
    separators=st.sampled_from(["\n", " ", "\n ", "   \n"]),
)
def test_pieces_have_the_tokens_of_the_whole_text(
    tmp_path, monkeypatch, runs_tokenizer, words, separators
):
    monkeypatch.setattr(corpus, "BLOCK", 60)
    text = "".join(word + separators[i % len(separators)] for i, word in enumerate(words))
    (tmp_path / "text").write_bytes(text.encode())
    cut = list(pieces(Part(str(tmp_path / "text"), 0, len(text.encode()), "train", True)))
    assert "".join(cut) == text
    assert max(len(piece.encode()) for piece in cut) <= 120
    ids = runs_tokenizer.encode_batch(cut)
    assert np.array_equal(np.concatenate(ids), runs_tokenizer.encode(text))


def test_a_set_is_made_once(texts, tmp_path, monkeypatch, capsys):
    assert prepare(config(), tmp_path / "data")["documents"] == 3
    monkeypatch.setattr(corpus, "text_blocks", None)
    assert prepare(config(), tmp_path / "data") is None
    assert "checking" in capsys.readouterr().err


def test_touched_and_renamed_files_are_the_same_text(texts, tmp_path):
    prepare(config(), tmp_path / "data")
    os.utime(texts / "a.txt", (1, 1))
    (texts / "a.txt").rename(texts / "a0.txt")
    prepare(config(), tmp_path / "data")


def test_other_text_is_never_silently_reused(texts, tmp_path):
    prepare(config(), tmp_path / "data")
    (texts / "a.txt").write_text("changed")
    (texts / "b.txt").rename(texts / "z.txt")
    (texts / "e.txt").write_text("more")
    changed = r"1 changed: a\.txt; 2 added: e\.txt, \.\.\.; 1 removed: b\.txt"
    with pytest.raises(ConfigError, match=rf"{tmp_path}/data.*\n.*{changed}; delete the folder"):
        prepare(config(), tmp_path / "data")


def test_another_order_of_the_same_files_is_other_text(texts, tmp_path):
    prepare(config(), tmp_path / "data")
    (texts / "a.txt").rename(texts / "x.txt")
    with pytest.raises(ConfigError, match=r"1 added: x\.txt; 1 removed: a\.txt"):
        prepare(config(), tmp_path / "data")


def test_a_file_that_shrinks_while_it_is_read_is_named(texts):
    with pytest.raises(ConfigError, match=r"a\.txt: shrank to 15 bytes while being read"):
        list(pieces(Part("a.txt", 0, 100, "train", True)))


def test_other_settings_are_never_silently_reused(texts, tmp_path):
    prepare(config(), tmp_path / "data")
    message = r"tokenizer was 'bytes', is 'bpe:300'; validation_fraction was 0\.2, is 0\.3"
    with pytest.raises(ConfigError, match=message):
        prepare(config(tokenizer="bpe:300", fraction=0.3), tmp_path / "data")


def test_of_two_processes_the_second_is_told(texts, tmp_path, monkeypatch):
    module = importlib.import_module("gpt_pjit.data.tokenize")
    tasks = module._tasks

    def slow_tasks(*arguments):
        with pytest.raises(ConfigError, match=r"data\.partial .*\n.*written by another process"):
            prepare(config(), tmp_path / "data")
        return tasks(*arguments)

    monkeypatch.setattr(module, "_tasks", slow_tasks)
    prepare(config(), tmp_path / "data")
    assert {path.name for path in tmp_path.iterdir()} == {"texts", "data"}


def test_a_folder_of_something_else_is_left_alone(texts, tmp_path):
    with pytest.raises(ConfigError, match=rf"folder {texts} .*\n.*no source\.json"):
        prepare(config(), texts)
    assert (texts / "a.txt").exists()


def test_a_set_at_a_path_is_opened_and_checked(texts, tmp_path):
    path = tmp_path / "data"
    prepare(config(), path)
    at_path = DataConfig(path=str(path))
    assert opened(at_path, tmp_path / "unused", 257).splits["train"].documents == 2
    message = (
        r"model\.vocab_size=256: is smaller than the 257 ids of tokenizer bytes; .*at least 257"
    )
    with pytest.raises(ConfigError, match=message):
        opened(at_path, tmp_path / "unused", 256)


def test_the_vocabulary_is_checked_before_the_work(texts, tmp_path):
    with pytest.raises(ConfigError, match=r"model\.vocab_size=100.*257 ids of tokenizer bytes"):
        opened(config(), tmp_path / "data", 100)
    assert not (tmp_path / "data").exists()


def test_invalid_utf8_names_every_file_and_byte(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "BLOCK", 11)  # cuts characters
    (texts / "b.txt").write_bytes("\u00e9".encode() * 10 + b"\xff and so on")
    (texts / "c.txt").write_bytes(b"cut short \xe7\x8c")
    message = r"2 problems:\n.*b\.txt:1: byte 20 is not UTF-8.*\n.*c\.txt:1: byte 10 is not UTF-8"
    with pytest.raises(ConfigError, match=message):
        prepare(config(), tmp_path / "data")


def test_an_unreadable_file_is_named(texts, tmp_path, monkeypatch):
    def forbidden(path, mode):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(corpus, "open", forbidden, raising=False)
    with pytest.raises(ConfigError, match=r"b\.txt: cannot be read: Permission denied"):
        prepare(config(), tmp_path / "data")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": "*.txt nowhere/*.txt"}, r"'nowhere/\*\.txt' matches no file"),
        ({"text": "deep"}, r"'deep' is a folder; FOLDER/\*\*/\*\.txt"),
        ({"text_exclude": "("}, r"exclude .*\n.*'\(' is not a regex"),
        ({"text_exclude": ".*"}, r"'\.\*' leaves out all 3 files"),
        ({"split": "documents", "fraction": 1 - 1e-9}, "no text to train on: 3 documents, 0 of"),
        ({"tokenizer": "nowhere.json"}, r"tokenizer nowhere\.json .*\n.*cannot be read"),
    ],
)
def test_every_problem_is_named(texts, tmp_path, fields, message):
    with pytest.raises(ConfigError, match=message):
        prepare(config(**fields), tmp_path / "data")
    assert not list(tmp_path.glob("data*"))


@pytest.mark.parametrize("fraction", [0.0, 1e-9])
def test_validation_may_be_empty(texts, tmp_path, fraction):
    dataset = opened(config(split="documents", fraction=fraction), tmp_path / "data", ROOMY)
    dataset.verify()
    assert dataset.splits["train"].documents == 3
    assert dataset.splits["validation"].tokens == 0


def test_a_set_may_lack_the_validation_split_but_not_the_other(texts, tmp_path):
    path = tmp_path / "data"
    prepare(config(), path)
    info, at_path = TokenDataset.open(path).info, DataConfig(path=str(path))
    del info.splits["validation"]
    (path / "dataset.json").write_bytes(info.to_json())
    assert open_data(at_path, tmp_path / "unused", ROOMY).held_out_tokens == 0
    del info.splits["train"]
    (path / "dataset.json").write_bytes(info.to_json())
    with pytest.raises(ConfigError, match="has no split 'train'"):
        open_data(at_path, tmp_path / "unused", ROOMY)
