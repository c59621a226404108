"""Token sets whose checksums are right, and whose content is not."""

import json

import numpy as np
import pytest

from gpt_pjit.core.tokens import BytesTokenizer
from gpt_pjit.core.tokens.format import checksum
from gpt_pjit.data import DatasetWriter
from tests.hostile.conftest import linked, pipe, some, written
from tests.hostile.sandbox import run


class Small(BytesTokenizer):
    vocab_size = 2**16


class Large(BytesTokenizer):
    vocab_size = 2**32


SIZES = {"tokens": 2000, "documents": 2, "source_bytes": 2000, "sha256": "0" * 64}


def edited(**fields):
    """`dataset.json` with these fields and the right hash."""

    def forge(data):
        manifest = data / "dataset.json"
        new = json.loads(manifest.read_text()) | fields
        del new["sha256"]
        manifest.write_text(json.dumps(new | {"sha256": checksum(new)}))

    return forge


def split(**sizes):
    return edited(splits={"train": SIZES | sizes})


def array(name="tokens", **fields):
    """`zarr.json` of the training split with these fields."""

    def forge(data):
        path = data / "train" / name / "zarr.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return forge


def chunked(shard, chunk):
    def forge(data):
        path = data / "train/tokens/zarr.json"
        fields = json.loads(path.read_text())
        fields["chunk_grid"]["configuration"]["chunk_shape"] = [shard]
        fields["codecs"][0]["configuration"]["chunk_shape"] = [chunk]
        path.write_text(json.dumps(fields))

    return forge


def claiming(tokens, documents):
    """Both files agree on these lengths."""

    def forge(data):
        split(tokens=tokens, documents=documents)(data)
        array(shape=[tokens])(data)
        array("documents", shape=[documents + 1])(data)

    return forge


def compressed(data):
    path = data / "train/tokens/zarr.json"
    fields = json.loads(path.read_text())
    zstd = {"name": "zstd", "configuration": {"level": 1}}
    fields["codecs"][0]["configuration"]["codecs"].append(zstd)
    path.write_text(json.dumps(fields))


def linked_folder_with_a_pipe(data):
    (data / "train/tokens/c").rename(data.parent / "elsewhere")
    (data / "train/tokens/c").symlink_to(data.parent / "elsewhere")
    pipe("../elsewhere/0")(data)


TOKENIZER = {"name": "bytes", "sha256": "0" * 64, "file": None}
OUTSIDE = TOKENIZER | {"file": "../../../../../../etc/passwd"}
FORGERIES = {
    "a pipe for a shard": (pipe("train/tokens/c/0"), "not a regular file"),
    "a pipe in a linked folder": (linked_folder_with_a_pipe, "not a regular file"),
    "a pipe for dataset.json": (pipe("dataset.json"), "not a regular file"),
    "a link to itself": (linked("train/tokens/c/0", "0"), "not a regular file"),
    "a link to a device": (linked("train/tokens/c/0", "/dev/zero"), "not a regular file"),
    "folders in a loop": (linked("train/tokens/c", ".."), "not a regular file"),
    "nesting": (written("dataset.json", b"[" * 2000), "cannot be read"),
    "nested zarr.json": (written("train/tokens/zarr.json", b'{"a":' * 10**6), "cannot be read"),
    "a huge dataset.json": (written("dataset.json", b" " * 2**27), "bytes"),
    "a huge zarr.json": (written("train/tokens/zarr.json", b" " * 2**27), "bytes"),
    "no object": (written("dataset.json", b"[]"), "cannot be read"),
    "negative tokens": (split(tokens=-5), "tokens"),
    "fractional tokens": (split(tokens=2000.5), "tokens"),
    "words for tokens": (split(tokens="many"), "tokens"),
    "true tokens": (split(tokens=True), "tokens"),
    "huge tokens": (split(tokens=2**70), "tokens"),
    "exabytes": (claiming(2**60, 2), "holds"),
    "exabytes of documents": (claiming(2000, 2**50), "holds"),
    "an exabyte in zarr.json": (array(shape=[2**60]), "2000"),
    "huge chunks": (chunked(2**60, 2**59), "tokens"),
    "a huge index": (chunked(2**50, 1), "tokens"),
    "compressed chunks": (compressed, "codec"),
    "splits as a list": (edited(splits=[1, 2]), "splits"),
    "splits of numbers": (edited(splits={"train": 5}), "split"),
    "a split outside": (edited(splits={"../../x": SIZES}), "not a plain name"),
    "words for a vocabulary": (edited(vocab_size="257"), "vocab_size"),
    "a negative vocabulary": (edited(vocab_size=-1), "vocab_size"),
    "another dtype": (edited(dtype="float64"), "dtype|data_type"),
    "a dtype of objects": (edited(dtype=["O"]), "dtype"),
    "a tokenizer of numbers": (edited(tokenizer=7), "tokenizer"),
    "a tokenizer outside": (edited(tokenizer=OUTSIDE), "not a plain name"),
    "a tokenizer of another name": (edited(tokenizer=TOKENIZER | {"file": 7}), "tokenizer"),
    "unknown fields": (edited(compression="zip"), "compression"),
}  # fmt: skip


@pytest.mark.parametrize("name", some(FORGERIES, "a pipe for a shard", "exabytes"))
def test_a_forged_set_is_refused(sandbox, refused, name):
    forge, match = FORGERIES[name]
    forge(sandbox / "set")
    refused(["data", "verify", sandbox / "set"], match)


@pytest.mark.slow
def test_ids_and_documents_that_cannot_be_are_refused(sandbox, refused):
    """Of a set whose checksums are right."""
    decrease = "they decrease, or pass the end"
    for number, (tokenizer, wrong, ends, match) in enumerate(
        [
            (Small(), 60_000, [2000], "id 60000 is outside the vocabulary of 257 ids"),
            (Large(), 2**31 + 9, [2000], "id -?2147483[0-9]* is outside the vocabulary"),
            (Small(), 0, [2000, 1000], decrease),
            (Small(), 0, [5000], decrease),
        ]
    ):
        path = sandbox / f"set{number}"
        with DatasetWriter(path, tokenizer) as writer:
            writer.splits["train"].append(np.append(np.arange(2000) % 251, wrong), ends, 2001)
        edited(vocab_size=257)(path)
        refused(["data", "verify", path], match)
        ended = run("data", "show", path, "--start=1500", "--tokens=600", only_in=sandbox)
        assert ended.code in (0, 78), ended  # some read only what is right
