"""The token-dataset format: what is written is read, and no damage is silent."""

import contextlib
import hashlib
import http.server
import itertools
import json
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings, strategies as st

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens import TokenDataset
from gpt_pjit.core.tokens.dataset import DamageError, _failure
from gpt_pjit.core.tokens.format import DatasetInfo, SplitInfo, checksum
from gpt_pjit.core.tokens.tokenizers import BytesTokenizer, load_tokenizer
from gpt_pjit.data import DatasetWriter, train_bpe
from tests.data.corpora import files_of


def read_all(dataset):
    """All that a reader can get: tokens and offsets of each split, and the tokenizer's file."""
    arrays = {}
    dataset.verify()
    for name, split in dataset.splits.items():
        arrays[name] = split.read(np.array([0]), split.tokens)[0].tolist()
        arrays[name + " offsets"] = split.document_offsets(0, split.documents + 1).tolist()
    return arrays, dataset.tokenizer().content, dataset.info


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None
)
@given(documents=st.lists(st.integers(0, 150), max_size=6), size=st.integers(1, 70), data=st.data())
def test_documents_written_in_any_pieces_are_read_at_any_offset(
    tmp_path_factory, small_shards, documents, size, data
):
    path = tmp_path_factory.mktemp("set") / "set"
    tokens = np.random.default_rng(0).integers(0, 256, sum(documents))
    ends = np.cumsum([0, *documents])
    with DatasetWriter(path, BytesTokenizer()) as writer:
        split = writer.splits["train"]
        for start, end in itertools.pairwise(ends):
            for piece in range(start, end, size):
                split.append(tokens[piece : min(piece + size, end)], [], 1)
            split.append(tokens[:0], [0], 0)
    train = TokenDataset.open(path).splits["train"]
    assert (train.tokens, train.documents) == (len(tokens), len(documents))
    assert train.document_offsets(0, len(ends)).tolist() == ends.tolist()
    length = data.draw(st.integers(0, len(tokens)))
    starts = data.draw(st.lists(st.integers(0, len(tokens) - length), max_size=5))
    rows = train.read(np.array(starts, np.int64), length)
    assert rows.dtype == np.int32
    assert rows.tolist() == [tokens[s : s + length].tolist() for s in starts]
    assert train.verify() == []


def test_large_vocabularies_take_32_bits(tmp_path, small_shards):
    class Large(BytesTokenizer):
        vocab_size = 2**17

    tokens = np.arange(0, 2**17, 1000)
    with DatasetWriter(tmp_path / "set", Large()) as writer:
        writer.splits["train"].append(tokens, [], 0)
    dataset = TokenDataset.open(tmp_path / "set")
    assert dataset.info.dtype == "uint32"
    assert dataset.splits["train"].read(np.array([0]), len(tokens)).tolist() == [tokens.tolist()]


def test_another_program_reads_the_same(make_set):
    dataset, arrays = make_set(1000, 70)
    for name, tokens in arrays.items():
        assert np.array_equal(zarr.open_array(f"{dataset.path}/{name}/tokens", mode="r")[:], tokens)
        offsets = zarr.open_array(f"{dataset.path}/{name}/documents", mode="r")[:]
        assert offsets.tolist() == [0, *np.cumsum([len(d) for d in np.array_split(tokens, 3)])]


def test_equal_content_has_an_equal_fingerprint(make_set):
    first, second = make_set(500, 20)[0], make_set(501, 20)[0]
    assert first.fingerprint != second.fingerprint
    shutil.rmtree(first.path)
    assert make_set(500, 20)[0].fingerprint == first.fingerprint


def test_a_set_carries_its_tokenizer(tmp_path, small_shards):
    train_bpe(["a cat sat on a mat " * 9], 300, tmp_path / "cats.json")
    with DatasetWriter(tmp_path / "set", load_tokenizer(str(tmp_path / "cats.json"))) as writer:
        writer.splits["train"].append(np.arange(1, 9), [], 9)
    content = (tmp_path / "cats.json").read_bytes()
    (tmp_path / "cats.json").unlink()
    tokenizer = TokenDataset.open(tmp_path / "set").tokenizer()
    assert (tokenizer.name, tokenizer.content) == ("cats.json", content)


@pytest.fixture
def bpe_set(tmp_path, small_shards):
    train_bpe(["a cat sat on a mat " * 9], 300, tmp_path / "cats.json")
    tokenizer = load_tokenizer(str(tmp_path / "cats.json"))
    with DatasetWriter(tmp_path / "set", tokenizer) as writer:
        for split in writer.splits.values():
            split.append(tokenizer.encode("cats and mats\n" * 30), [], 420)
    return tmp_path / "set"


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_an_error(tmp_path, small_shards, every):
    """In each (seventh) byte of each file of a set, one bit of it, the eight in turn."""
    train_bpe(["a cat"], 260, tmp_path / "cats.json")
    tokenizer = load_tokenizer(str(tmp_path / "cats.json"))
    with DatasetWriter(tmp_path / "set", tokenizer) as writer:
        for split in writer.splits.values():
            split.append(tokenizer.encode("cats and mats\n" * 2), [9], 28)
    whole = tmp_path / "set"
    for path in filter(Path.is_file, sorted(whole.rglob("*"))):
        content = bytearray(path.read_bytes())
        for at in range(0, len(content), every if len(content) < 1200 else 97):  # the tokenizer's
            content[at] ^= 1 << at % 8
            path.write_bytes(content)
            with pytest.raises(ConfigError):
                TokenDataset.open(whole).verify()
            content[at] ^= 1 << at % 8
        path.write_bytes(content)
    TokenDataset.open(whole).verify()


def test_every_cut_or_missing_file_is_an_error(bpe_set):
    """And names the file, or says that the hash of the content differs."""
    random = np.random.default_rng(0)
    for path in filter(Path.is_file, sorted(bpe_set.rglob("*"))):
        content = path.read_bytes()
        for size in [None, 0, *random.integers(0, len(content), 3).tolist(), len(content) - 1]:
            path.unlink() if size is None else path.write_bytes(content[:size])
            if size == len(content) - 1 and path.name == "dataset.json":
                continue  # its last line feed
            with pytest.raises(ConfigError, match=rf"{path.name}|content hash|metadata"):
                TokenDataset.open(bpe_set).verify()
            path.write_bytes(content)
    TokenDataset.open(bpe_set).verify()


def test_the_files_are_those_of_format_version_1(make_set):
    """Sets that were written before must be read, and resumed runs must find the same ones."""
    dataset, _ = make_set(1000, 70)
    digest = hashlib.sha256()
    for name, content in sorted(files_of(Path(dataset.path)).items()):
        digest.update(name.encode() + content)
    assert digest.hexdigest() == "8412cc045909dc8ce0f4ccaaa8c2534213403ea676461ff115b88df127cccd66"


def test_a_missing_shard_is_not_read_as_zeros(tmp_path, small_shards):
    with DatasetWriter(tmp_path / "set", BytesTokenizer()) as writer:
        writer.splits["train"].append(np.zeros(200, np.int64), [], 200)
    train = TokenDataset.open(tmp_path / "set").splits["train"]
    assert train.read(np.array([0]), 200).sum() == 0
    (tmp_path / "set/train/tokens/c/1").unlink()
    train = TokenDataset.open(tmp_path / "set").splits["train"]
    train.read(np.array([0]), 64)
    with pytest.raises(ConfigError, match="missing"):
        train.read(np.array([0]), 65)


def test_a_corrupt_chunk_names_split_and_tokens(make_set):
    dataset, _ = make_set(1000, 70)
    shard = f"{dataset.path}/train/tokens/c/2"
    with open(shard, "r+b") as file:
        file.write(b"\xff")
    train = TokenDataset.open(dataset.path).splits["train"]
    with pytest.raises(ConfigError, match=r"tokens of split 'train'.*DATA_LOSS.*tokens/c/2"):
        train.read(np.array([0, 120]), 20)


def test_shards_in_the_wrong_place_are_found_by_the_content_hash(make_set):
    dataset, _ = make_set(1000, 70)
    shards = _path(dataset) / "train/tokens/c"
    shutil.copy(shards / "0", shards / "1")
    train = TokenDataset.open(dataset.path).splits["train"]
    (problem,) = train.verify()
    assert f"not {train.info.sha256}" in problem
    with pytest.raises(ConfigError, match="the content hash is"):
        TokenDataset.open(dataset.path).verify()


def test_an_array_of_another_length_is_named(make_set):
    dataset, _ = make_set(1000, 70)
    metadata = _path(dataset) / "train/tokens/zarr.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"shape": [999]}))
    with pytest.raises(ConfigError, match=r"'train' .* of \[1000\] but received: \[999\]"):
        TokenDataset.open(dataset.path)


def test_another_tokenizer_file_is_named(bpe_set):
    (bpe_set / "tokenizer.json").write_text("{}")
    with pytest.raises(
        ConfigError, match=r"tokenizer\.json, of tokenizer 'cats\.json', is missing or"
    ):
        TokenDataset.open(bpe_set).tokenizer()
    (bpe_set / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="is missing or damaged"):
        TokenDataset.open(bpe_set).tokenizer()


def test_an_unreachable_store_is_not_taken_for_damage():
    assert type(_failure(ValueError("UNAVAILABLE: no network"))) is OSError
    assert type(_failure(ValueError("DATA_LOSS: a checksum"))) is DamageError


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def interrupted():
        with DatasetWriter(tmp_path / "set", BytesTokenizer()) as writer:
            writer.splits["train"].append(np.arange(9), [], 9)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_half_copied_set_is_refused(tmp_path, make_set):
    dataset, _ = make_set(100, 10)
    (_path(dataset) / "dataset.json").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"no dataset\.json: writing or copying.*interrupted"):
        TokenDataset.open(dataset.path)
    (tmp_path / "elsewhere").rename(_path(dataset) / "dataset.json")
    shutil.rmtree(f"{dataset.path}/train")
    with pytest.raises(ConfigError, match="tokens of split 'train' cannot be read"):
        TokenDataset.open(dataset.path)


def test_a_set_is_never_overwritten(make_set):
    dataset, _ = make_set(100, 10)
    with pytest.raises(ConfigError, match="exists and is not empty"):
        DatasetWriter(_path(dataset), BytesTokenizer()).__enter__()


def test_of_two_writers_the_second_is_refused(tmp_path):
    with DatasetWriter(tmp_path / "set", BytesTokenizer()):
        second = DatasetWriter(tmp_path / "set", BytesTokenizer())
        with pytest.raises(ConfigError, match=r"set\.partial .*\n.*written by another process"):
            second.__enter__()
    assert TokenDataset.open(tmp_path / "set").splits["train"].tokens == 0
    assert len(list(tmp_path.iterdir())) == 1


def test_a_writer_resumes_from_the_last_save(tmp_path, small_shards):
    tokens = np.arange(300) % 256
    for name, breaks in (("whole", []), ("broken", [40, 130, 250])):
        for at in [*breaks, 300]:
            writer = DatasetWriter(tmp_path / name, BytesTokenizer())
            with contextlib.suppress(KeyboardInterrupt), writer:
                start = writer.saved or 0
                for i in range(start, at):
                    writer.splits["train"].append(tokens[i : i + 1], [1] if i % 70 == 0 else [], 1)
                if at < 300:
                    writer.save(at)
                    writer.splits["train"].append(tokens[:99], [9], 99)  # lost
                    raise KeyboardInterrupt
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "broken")
    assert TokenDataset.open(tmp_path / "broken").splits["train"].documents == 6


def test_end_of_text_is_refused_inside_a_document(tmp_path):
    with (
        pytest.raises(ValueError, match="end-of-text, token 256, inside a document"),
        DatasetWriter(tmp_path / "set", BytesTokenizer()) as writer,
    ):
        writer.splits["train"].append(np.array([1, 256, 2]), [3], 2)


def test_an_id_above_the_vocabulary_is_refused(tmp_path):
    with (
        pytest.raises(ValueError, match="token 300 is not below vocab_size 257"),
        DatasetWriter(tmp_path / "set", BytesTokenizer()) as writer,
    ):
        writer.splits["train"].append(np.array([1, 300]), [], 2)


def test_a_folder_without_a_set_is_named(tmp_path):
    with pytest.raises(ConfigError, match=rf"{tmp_path} .*\n.*not a token dataset; check the path"):
        TokenDataset.open(tmp_path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"version": 2}, r"format is not 'gpt_pjit token dataset', version 1"),
        ({"format": "tar"}, r"format is not 'gpt_pjit token dataset', version 1"),
        ({"eot_id": 5}, r"edited or damaged"),
    ],
)
def test_a_foreign_or_edited_manifest_is_named(make_set, edit, message):
    dataset, _ = make_set(100, 10)
    manifest = _path(dataset) / "dataset.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | edit))
    with pytest.raises(ConfigError, match=rf"{dataset.path} has 1 problem:\n.*{message}"):
        TokenDataset.open(dataset.path)


def test_a_manifest_with_other_fields_is_named(make_set):
    dataset, _ = make_set(100, 10)
    fields = json.loads((_path(dataset) / "dataset.json").read_text())
    del fields["vocab_size"], fields["sha256"]
    fields["sha256"] = checksum(fields)
    with pytest.raises(ConfigError, match=r"missing 1 .*vocab_size"):
        DatasetInfo.from_json(json.dumps(fields).encode(), "here")


def test_nine_billion_tokens_open_at_once(make_set):
    """Only metadata is read, so nine billion tokens can be pretended by editing it; a shard has a
    hole of their size.
    """
    dataset, _ = make_set(100, 10)
    path, tokens, documents = _path(dataset), 9 * 10**9, 10**7
    for array, length in (("tokens", tokens), ("documents", documents + 1)):
        metadata = json.loads((path / "train" / array / "zarr.json").read_text())
        (path / "train" / array / "zarr.json").write_text(
            json.dumps(metadata | {"shape": [length]})
        )
    os.truncate(path / "train/tokens/c/0", 2 * tokens)
    split = SplitInfo(tokens, documents, 4 * tokens, "0" * 64)
    info = DatasetInfo(**(vars(dataset.info) | {"splits": {"train": split}}))
    (path / "dataset.json").write_bytes(info.to_json())
    start = time.perf_counter()
    assert TokenDataset.open(path).splits["train"].tokens == tokens
    assert time.perf_counter() - start < 0.5


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Serves parts of files, as object stores do."""

    protocol_version = "HTTP/1.1"
    requests: list[str]

    def log_message(self, *_):
        self.requests.append(self.path)

    def do_GET(self):
        try:
            with open(self.translate_path(self.path), "rb") as file:
                content = file.read()
        except FileNotFoundError:
            return self.send_error(404)
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        start = int(first) if first else len(content) - int(last)
        stop = min(int(last) + 1, len(content)) if first and last else len(content)
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        self.wfile.write(content[start:stop])
        return None


@pytest.fixture
def serve():
    """`serve(folder)` is the (URL, list of requests) of a web server for it."""
    servers = []

    def start(folder):
        class Handler(RangeHandler):
            def __init__(self, *args):
                super().__init__(*args, directory=folder)

        Handler.requests = []
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/", Handler.requests

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_set_on_a_server_is_read_in_few_requests(serve, bpe_set):
    url, requests = serve(bpe_set)
    dataset = TokenDataset.open(url)
    assert len(requests) == 3  # dataset.json, and the metadata of two token arrays
    local = read_all(TokenDataset.open(bpe_set))
    assert read_all(dataset) == local
    del requests[:]
    dataset.splits["train"].read(np.arange(40), 20)
    assert requests == []  # the small set is in the cache


def test_a_server_without_a_set_is_named(serve, tmp_path):
    url, _ = serve(tmp_path)
    with pytest.raises(ConfigError, match=f"token dataset {url} .*\n.*check the path"):
        TokenDataset.open(url)


def _path(dataset):
    return Path(dataset.path)
