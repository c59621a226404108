"""Every kind of input gives the same documents, and bad input is named with file and line."""

import contextlib
import gzip
import json
import sys
import types
import unicodedata
import zlib

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.data import corpus
from tests.data.corpora import documents, random_documents, small_bpe, tokenize, truncated, write_as

KINDS = ["txt", "jsonl", "jsonl.gz", "json.gz", "jsonl.zst", "parquet"]
NAMED_OTHERWISE = ["ndjson", "JSONL", "json", "gz", "JSON.GZ", "zst", "ndjson.zst"]
ALL = {"validation_fraction": 0.0}


@pytest.mark.parametrize("kind", KINDS + NAMED_OTHERWISE)
def test_every_kind_of_file_holds_the_same_documents(tmp_path, kind):
    texts = random_documents(300, 60)
    write_as(kind, tmp_path / "corpus", texts)
    pattern = tmp_path / ("corpus/*.txt" if kind == "txt" else "corpus*")
    counts = tokenize(pattern, tmp_path / "set", small_bpe(tmp_path))
    found = documents(tmp_path / "set")
    composed = [unicodedata.normalize("NFC", text) for text in texts]
    assert sorted(found["train"] + found["validation"]) == sorted(composed)
    train = set(found["train"])
    assert found["train"] == [text for text in composed if text in train]
    assert 50 < len(found["validation"]) < 130
    assert (counts["documents"], counts["empty"]) == (300, texts.count(""))
    assert counts["changed"] == sum(a != b for a, b in zip(texts, composed, strict=True)) > 100


def test_documents_keep_their_split_in_every_kind_of_file(tmp_path):
    texts = list(dict.fromkeys(random_documents(100, 20)))
    chosen = []
    for kind in ("txt", "jsonl", "parquet"):
        write_as(kind, tmp_path / f"corpus-{kind}", texts)
        pattern = tmp_path / (f"corpus-{kind}/*" if kind == "txt" else f"corpus-{kind}.*")
        tokenize(pattern, tmp_path / kind)
        chosen.append(documents(tmp_path / kind)["validation"])
    assert chosen[0] == chosen[1] == chosen[2]


def test_a_column_of_another_name(tmp_path):
    for kind in ("jsonl", "parquet"):
        write_as(kind, tmp_path / "corpus", ["one", "two"], column="content")
        path = tmp_path / f"corpus.{kind}"
        tokenize(path, tmp_path / f"set-{kind}", column="content", **ALL)
        assert documents(tmp_path / f"set-{kind}")["train"] == ["one", "two"]
        missing = r"has no (field|column) 'text', but id, content"
        with pytest.raises(ConfigError, match=missing):
            tokenize(path, tmp_path / "none")


LINES = [
    (b'{"text": "a"}\n{"text": oops}', r"bad\.jsonl:2: is not JSON: Expecting value at column 10"),
    (b'\n\n{"text": "a"', r"bad\.jsonl:3: is not JSON: Expecting ',' delimiter at column 13"),
    (b'{"text": "\xff"}', r"bad\.jsonl:1: 'utf-8' .* in position 10"),
    (b'{"text": "\\ud800"}', r"bad\.jsonl:1: .*surrogates not allowed"),
    (b'{"text": 5}', r"bad\.jsonl:1: 'text' is int, not text"),
    (b"[1]", r"bad\.jsonl:1: is list, not an object"),
    (b'{"t": 1, "u": 2}', r"bad\.jsonl:1: has no field 'text', but t, u"),
    (b"{}", r"bad\.jsonl:1: has no field 'text', but none"),
    (b'{"text": "a", "x": ' + b"[" * 1100 + b"]" * 1100 + b"}", r"bad\.jsonl:1: maximum recursion"),
]


@pytest.mark.parametrize(("content", "message"), LINES)
def test_a_bad_line_is_named_or_skipped(tmp_path, content, message, capsys):
    (tmp_path / "bad.jsonl").write_bytes(content)
    (tmp_path / "good.jsonl").write_text('{"text": "good"}\n  \n')
    with pytest.raises(ConfigError, match=message):
        tokenize(tmp_path / "*.jsonl", tmp_path / "set", **ALL)
    counts = tokenize(tmp_path / "*.jsonl", tmp_path / "set", skip=True, **ALL)
    assert counts["skipped"] == 1
    assert documents(tmp_path / "set")["train"][-1] == "good"
    assert "skipped: " in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst", "parquet"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.999])
def test_a_truncated_file_is_named_or_skipped(tmp_path, kind, share):
    write_as(kind, tmp_path / "corpus", random_documents(1000, 60))
    path = tmp_path / f"corpus.{kind}"
    path.write_bytes(truncated(path.read_bytes(), share))
    write_as("jsonl", tmp_path / "good", ["good"])
    paths, is_bad = (path, tmp_path / "good.jsonl"), share > 0 or kind == "parquet"
    if is_bad:  # no bytes are a whole gzip or zstd file of nothing
        with pytest.raises(ConfigError, match=rf"corpus\.{kind}: (is cut short|cannot be read)"):
            tokenize(paths, tmp_path / "set", **ALL)
    assert tokenize(paths, tmp_path / "set", skip=True, **ALL)["skipped"] == is_bad
    assert documents(tmp_path / "set")["train"][-1] == "good"


def lines_of(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


TEXTS = [f"{i} " + "word " * (i % 40) for i in range(700)]
DAMAGE = {
    "jsonl.gz then garbage": gzip.compress(lines_of(TEXTS)) + b"garbage",
    "jsonl.gz without a last line feed": gzip.compress(lines_of(TEXTS)[:-1]) + b"garbage",
    "jsonl.gz with a wrong checksum": gzip.compress(lines_of(TEXTS))[:-8] + b"\xff" * 8,
    "jsonl.zst then garbage": zstandard.compress(lines_of(TEXTS)) + b"garbage",
    "jsonl.zst cut short": zstandard.compress(lines_of(TEXTS)) + zstandard.compress(b"x")[:-1],
}


def skipping(*arguments, **options):
    """How many documents are tokenised, and how many skipped."""
    counts = tokenize(*arguments, skip=True, **options)
    return counts["documents"], counts["skipped"]


@pytest.mark.parametrize("name", DAMAGE)
def test_what_comes_before_damage_is_kept(tmp_path, name):
    path = tmp_path / f"c.{name.split()[0]}"
    path.write_bytes(DAMAGE[name])
    with pytest.raises(ConfigError, match=r"(is damaged|is cut short).*, after line (700|699)"):
        tokenize(path, tmp_path / "set", **ALL)
    assert skipping(path, tmp_path / "set", **ALL) == (700, 1)
    assert documents(tmp_path / "set")["train"] == TEXTS


def unpacked_byte_by_byte(content, stream):
    parts = []
    with contextlib.suppress(zlib.error, zstandard.ZstdError):
        for byte in content:
            parts.append(stream.decompress(bytes([byte])))
    return b"".join(parts)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_all_that_can_be_unpacked_is_read(tmp_path, pack, monkeypatch):
    """Every line that a decompressor gives before it sees the damage; one more is lost."""
    monkeypatch.setattr(corpus, "PACKED_BLOCK", 4000)
    packed = bytearray(pack(lines_of(random_documents(800, 60))))
    middle = len(packed) * 2 // 3
    packed[middle : middle + 40] = b"\xff" * 40
    (tmp_path / "c.jsonl").write_bytes(packed)
    counts = tokenize(tmp_path / "c.jsonl", tmp_path / "set", skip=True, **ALL)
    zstd = zstandard.ZstdDecompressor().decompressobj()
    stream = zlib.decompressobj(31) if pack is gzip.compress else zstd
    *lines, _ = unpacked_byte_by_byte(packed, stream).split(b"\n")
    assert (
        counts["documents"] + counts["skipped"] == len([line for line in lines if line.strip()]) + 1
    )
    good = []
    for line in lines:
        with contextlib.suppress(ValueError, KeyError):
            good.append(json.loads(line)["text"])
    assert documents(tmp_path / "set")["train"] == good
    assert len(good) > 200


def test_a_damaged_row_group_loses_its_own_rows_only(tmp_path):
    texts = random_documents(1000, 30)
    table = pyarrow.table({"text": texts})
    path = tmp_path / "t.parquet"
    options = {"row_group_size": 100, "write_page_checksum": True, "compression": "none"}
    pyarrow.parquet.write_table(table, path, use_dictionary=False, **options)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"t\.parquet: rows \d+ to \d00 cannot be read"):
        tokenize(path, tmp_path / "set", **ALL)
    assert skipping(path, tmp_path / "set", **ALL) == (900, 100)


def test_a_table_without_the_column_loses_all_its_rows(tmp_path):
    write_as("parquet", tmp_path / "a", ["x"] * 7, column="other")
    write_as("parquet", tmp_path / "b", ["good"])
    paths = sorted(tmp_path.glob("*.parquet"))
    assert skipping(paths, tmp_path / "set", **ALL) == (1, 7)


def test_bad_values_of_a_table_are_named_and_counted_one_by_one(tmp_path):
    values = pyarrow.array([b"a", None, b"\xff", b"b"]).view("string")
    path = tmp_path / "t.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": values}), path)
    message = (
        r"t\.parquet:2: 'text' is NoneType, not text\n.*t\.parquet:3: 'utf-8' .* in position 0"
    )
    with pytest.raises(ConfigError, match=message):
        tokenize(path, tmp_path / "set")
    assert skipping(path, tmp_path / "set", **ALL) == (2, 2)
    assert documents(tmp_path / "set")["train"] == ["a", "b"]


def test_a_column_of_bytes_is_read_as_utf8(tmp_path):
    table = pyarrow.table({"text": ["one", "zw\u00f6lf"]})
    for kind in ("binary", "large_string"):
        path = tmp_path / f"{kind}.parquet"
        pyarrow.parquet.write_table(table.cast(pyarrow.schema([("text", kind)])), path)
        tokenize(path, tmp_path / kind, **ALL)
        assert documents(tmp_path / kind)["train"] == ["one", "zw\u00f6lf"]


def test_bad_text_files_are_skipped_and_counted(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\n\xff")
    (tmp_path / "b.txt").write_text("good")
    with pytest.raises(ConfigError, match=r"a\.txt:3: byte 8 is not UTF-8"):
        tokenize(tmp_path / "*.txt", tmp_path / "set", **ALL)
    assert tokenize(tmp_path / "*.txt", tmp_path / "set", skip=True, **ALL)["skipped"] == 1
    assert documents(tmp_path / "set")["train"] == ["good"]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
def test_a_byte_order_mark_is_not_text(tmp_path, pack):
    (tmp_path / "a.txt").write_bytes(pack(b"\xef\xbb\xbfone \xef\xbb\xbf"))
    (tmp_path / "b.jsonl").write_bytes(pack(b'\xef\xbb\xbf{"text": "two"}\n'))
    tokenize(sorted(tmp_path.iterdir()), tmp_path / "set", **ALL)
    assert documents(tmp_path / "set")["train"] == ["one \ufeff", "two"]


def test_packed_text_and_json_that_is_not_records_are_documents(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b'{"text": "one"}\n'))
    (tmp_path / "b.json").write_text('{\n  "text": "two"\n}\n')
    (tmp_path / "c.gz").write_bytes(gzip.compress(b"three"))
    (tmp_path / "d.zst").write_bytes(zstandard.compress(b"four"))
    tokenize(sorted(tmp_path.iterdir()), tmp_path / "set", **ALL)
    expected = ['{"text": "one"}\n', '{\n  "text": "two"\n}\n', "three", "four"]
    assert documents(tmp_path / "set")["train"] == expected


def test_packed_text_has_the_split_of_the_same_text(tmp_path):
    texts = random_documents(60, 10)
    for i, text in enumerate(texts):
        (tmp_path / f"{i:02}.txt").write_bytes(text.encode())
        (tmp_path / f"{i:02}.txt.gz").write_bytes(gzip.compress(text.encode()))
    for suffix in ("txt", "gz"):
        tokenize(tmp_path / f"*.{suffix}", tmp_path / suffix)
    assert documents(tmp_path / "txt") == documents(tmp_path / "gz")


def test_a_long_window_of_zstd_is_read(tmp_path):
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    packed = zstandard.ZstdCompressor(compression_params=parameters)
    stream = packed.compressobj()
    content = stream.compress(lines_of(TEXTS)) + stream.flush()
    (tmp_path / "c.jsonl.zst").write_bytes(content)
    assert tokenize(tmp_path / "c.jsonl.zst", tmp_path / "set")["documents"] == 700


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_zeros_after_the_end_are_padding(tmp_path, pack):
    (tmp_path / "c.jsonl").write_bytes(pack(lines_of(TEXTS)) + bytes(20_000))
    assert tokenize(tmp_path / "c.jsonl", tmp_path / "set")["documents"] == 700


def fake_hub(monkeypatch, rows, asked=None):
    def load_dataset(name, config, *, split, streaming):
        (asked if asked is not None else []).append((name, config, split, streaming))
        return rows()

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))


def test_a_dataset_of_the_hub(tmp_path, monkeypatch):
    texts, asked = random_documents(500, 30), []
    fake_hub(monkeypatch, lambda: ({"text": text} for text in texts), asked)
    some = ("hf:Skylion007/openwebtext", tmp_path / "set")
    tokenize(*some, workers=1, **ALL)
    assert documents(tmp_path / "set")["train"] == texts
    assert asked == [("Skylion007/openwebtext", None, "train", True)]
    assert tokenize(*some, **ALL) is None


def test_rows_of_the_hub_without_the_column_are_counted(tmp_path, monkeypatch):
    rows = [{"text": "a"}, {"other": 1}, {"text": None}] * 100
    fake_hub(monkeypatch, lambda: iter(rows))
    with pytest.raises(ConfigError, match=r"hf:x:2: has no field 'text', but other"):
        tokenize("hf:x", tmp_path / "set", workers=1, **ALL)
    counts = tokenize("hf:x", tmp_path / "set", workers=1, skip=True, **ALL)
    assert (counts["documents"], counts["skipped"]) == (100, 200)


def test_a_hub_that_fails_on_the_way_stops_even_when_skipping(tmp_path, monkeypatch):
    def rows():
        yield {"text": "a"}
        raise ConnectionError("no network")

    fake_hub(monkeypatch, rows)
    with pytest.raises(ConfigError, match="cannot read it: no network"):
        tokenize("hf:x", tmp_path / "set", workers=1, skip=True, **ALL)


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"datasets is needed to read hf:x; pip install"):
        tokenize("hf:x", tmp_path / "set", workers=1)


def test_lines_longer_than_blocks_and_tasks(tmp_path):
    texts = ["a " * 10, "long " * 400_000, "b"]
    with gzip.open(tmp_path / "long.json.gz", "wt") as file:
        file.write("\n".join(json.dumps({"text": text}) for text in texts))
    counts = tokenize(tmp_path / "*.gz", tmp_path / "set", **ALL)
    assert documents(tmp_path / "set")["train"] == texts
    assert counts["oversized"] == 1
