"""Every kind of input gives the same documents, and bad input is named with file and line."""

import gzip
import json
import sys
import types
import unicodedata

import pyarrow
import pyarrow.parquet
import pytest

from gpt_pjit.config import DataConfig
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens import TokenDataset
from gpt_pjit.data import Effort, prepare
from tests.data.corpora import documents_of, random_documents, small_bpe, truncated, write_as

KINDS = ["txt", "jsonl", "jsonl.gz", "json.gz", "jsonl.zst", "parquet"]
SKIP = Effort(skip_errors=True)


def config(text, **fields):
    return DataConfig(text=str(text), **({"validation_fraction": 0.3} | fields))


def documents(path):
    dataset = TokenDataset.open(path)
    dataset.verify()
    return {name: documents_of(s, dataset.tokenizer()) for name, s in dataset.splits.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_holds_the_same_documents(tmp_path, kind):
    texts = random_documents(300, 60)
    write_as(kind, tmp_path / "corpus", texts)
    pattern = tmp_path / ("corpus/*.txt" if kind == "txt" else "corpus*")
    counts = prepare(config(pattern, tokenizer=small_bpe(tmp_path)), tmp_path / "set")
    found = documents(tmp_path / "set")
    composed = [unicodedata.normalize("NFC", text) for text in texts]
    assert sorted(found["train"] + found["validation"]) == sorted(composed)
    train = set(found["train"])
    assert found["train"] == [text for text in composed if text in train]
    assert 50 < len(found["validation"]) < 130
    assert (counts.documents, counts.empty) == (300, texts.count(""))
    assert counts.changed == sum(a != b for a, b in zip(texts, composed, strict=True)) > 100


def test_documents_keep_their_split_in_every_kind_of_file(tmp_path):
    texts = list(dict.fromkeys(random_documents(100, 20)))
    chosen = []
    for kind in ("txt", "jsonl", "parquet"):
        write_as(kind, tmp_path / f"corpus-{kind}", texts)
        pattern = tmp_path / (f"corpus-{kind}/*" if kind == "txt" else f"corpus-{kind}.*")
        prepare(config(pattern), tmp_path / kind)
        chosen.append(documents(tmp_path / kind)["validation"])
    assert chosen[0] == chosen[1] == chosen[2]


def test_a_column_of_another_name(tmp_path):
    for kind in ("jsonl", "parquet"):
        write_as(kind, tmp_path / "corpus", ["one", "two"], column="content")
        path = tmp_path / f"corpus.{kind}"
        some = {"text_column": "content", "validation_fraction": 0.0}
        prepare(config(path, **some), tmp_path / f"set-{kind}")
        assert documents(tmp_path / f"set-{kind}")["train"] == ["one", "two"]
        missing = r"has no (field|column) 'text', but id, content"
        with pytest.raises(ConfigError, match=missing):
            prepare(config(path), tmp_path / "none")


LINES = [
    (b'{"text": "a"}\n{"text": oops}', r"bad\.jsonl:2: is not JSON: Expecting value at column 10"),
    (b'\n\n{"text": "a"', r"bad\.jsonl:3: is not JSON: Expecting ',' delimiter at column 13"),
    (b'{"text": "\xff"}', r"bad\.jsonl:1: byte 10 of the line is not UTF-8"),
    (b'{"text": "\\ud800"}', r"bad\.jsonl:1: character 0 of the text is half of a surrogate pair"),
    (b'{"text": 5}', r"bad\.jsonl:1: 'text' is int, not text"),
    (b"[1]", r"bad\.jsonl:1: is list, not an object"),
    (b'{"t": 1, "u": 2}', r"bad\.jsonl:1: has no field 'text', but t, u"),
    (b"{}", r"bad\.jsonl:1: has no field 'text', but none"),
]


@pytest.mark.parametrize(("content", "message"), LINES)
def test_a_bad_line_is_named_or_skipped(tmp_path, content, message, capsys):
    (tmp_path / "bad.jsonl").write_bytes(content)
    (tmp_path / "good.jsonl").write_text('{"text": "good"}\n  \n')
    some = config(tmp_path / "*.jsonl", validation_fraction=0.0)
    with pytest.raises(ConfigError, match=message):
        prepare(some, tmp_path / "set")
    counts = prepare(some, tmp_path / "set", SKIP)
    assert counts.skipped == 1
    assert documents(tmp_path / "set")["train"][-1] == "good"
    assert "skipped: " in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst", "parquet"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.999])
def test_a_truncated_file_is_named_or_skipped(tmp_path, kind, share):
    write_as(kind, tmp_path / "corpus", random_documents(1000, 60))
    path = tmp_path / f"corpus.{kind}"
    path.write_bytes(truncated(path.read_bytes(), share))
    write_as("jsonl", tmp_path / "good", ["good"])
    some = config(tmp_path / "*.*", text_exclude=r".*\.json", validation_fraction=0.0)
    if share or kind == "parquet":  # no bytes are a whole gzip or zstd file of nothing
        with pytest.raises(
            ConfigError, match=rf"corpus\.{kind}(:\d+|: row \d+): cannot be read on"
        ):
            prepare(some, tmp_path / "set")
    assert prepare(some, tmp_path / "set", SKIP).skipped == (1 if share or kind == "parquet" else 0)
    assert documents(tmp_path / "set")["train"][-1] == "good"


def test_a_null_in_a_table_is_named(tmp_path):
    table = pyarrow.table({"text": ["a", None]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match=r"t\.parquet:2: 'text' is NoneType, not text"):
        prepare(config(tmp_path / "t.parquet"), tmp_path / "set")


def test_bad_text_files_are_skipped_and_counted(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\n\xff")
    (tmp_path / "b.txt").write_text("good")
    some = config(tmp_path / "*.txt", validation_fraction=0.0)
    with pytest.raises(ConfigError, match=r"a\.txt:3: byte 8 is not UTF-8"):
        prepare(some, tmp_path / "set")
    assert prepare(some, tmp_path / "set", SKIP).skipped == 1
    assert documents(tmp_path / "set")["train"] == ["good"]


def test_a_dataset_of_the_hub(tmp_path, monkeypatch):
    texts = random_documents(500, 30)
    asked = []

    def load_dataset(name, config, *, split, streaming):
        asked.append((name, config, split, streaming))
        return ({"text": text} for text in texts)

    module = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", module)
    some = config("hf:Skylion007/openwebtext", validation_fraction=0.0)
    prepare(some, tmp_path / "set", Effort(workers=1))
    assert documents(tmp_path / "set")["train"] == texts
    assert asked == [("Skylion007/openwebtext", None, "train", True)]
    assert prepare(some, tmp_path / "set") is None


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"datasets is needed to read hf:x; pip install"):
        prepare(config("hf:x"), tmp_path / "set", Effort(workers=1))


def test_lines_longer_than_blocks_and_tasks(tmp_path):
    texts = ["a " * 10, "long " * 400_000, "b"]
    with gzip.open(tmp_path / "long.json.gz", "wt") as file:
        file.write("\n".join(json.dumps({"text": text}) for text in texts))
    counts = prepare(config(tmp_path / "*.gz", validation_fraction=0.0), tmp_path / "set")
    assert documents(tmp_path / "set")["train"] == texts
    assert counts.oversized == 1
