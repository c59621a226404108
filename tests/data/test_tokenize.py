"""The set depends on the input alone: not on workers, engines, interruptions or kills."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gpt_pjit.config import DataConfig
from gpt_pjit.core.errors import EXIT_CONFIG, EXIT_DONE, EXIT_INTERRUPTED, ConfigError
from gpt_pjit.core.tokens import TokenDataset, load_tokenizer
from gpt_pjit.data import Effort, prepare, tokenize, workers
from gpt_pjit.data.engines import Engine, EngineDiffersError, FastEngine
from tests.data.corpora import files_of, random_documents, small_bpe, write_as
from tests.helpers import ROOT


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Files of several kinds, 1.2 MB of text, and a tokenizer."""
    folder = tmp_path_factory.mktemp("corpus")
    for i, kind in enumerate(("txt", "jsonl.gz", "parquet", "jsonl.zst", "jsonl")):
        write_as(kind, folder / f"{i}", random_documents(40 + 20 * i, 200, seed=i))
    small_bpe(folder)
    (folder / "0/long.txt").write_text("".join(random_documents(100, 400)))
    return folder


def config(corpus, **fields):
    fields = {"tokenizer": str(corpus / "small.json"), "validation_fraction": 0.2} | fields
    return DataConfig(text=f"{corpus}/*.* {corpus}/0/*", text_exclude=r".*small\.json", **fields)


@pytest.fixture(scope="module")
def expected(corpus, tmp_path_factory):
    """The files of the set from an unbroken run of one worker without a fast engine."""
    folder = tmp_path_factory.mktemp("expected") / "set"
    prepare(config(corpus), folder, Effort(workers=1, fast=False))
    TokenDataset.open(folder).verify()
    return files_of(folder)


def command(corpus, out, *flags):
    some = config(corpus)
    return [
        *(sys.executable, "-m", "gpt_pjit.data", "tokenize", *some.text.split()),
        *(f"--exclude={some.text_exclude}", f"--tokenizer={some.tokenizer}", f"--out={out}"),
        *("--validation_fraction=0.2", *flags),
    ]


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("fast", [False, True])
def test_workers_and_engine_do_not_matter(corpus, expected, tmp_path, count, fast, monkeypatch):
    monkeypatch.setattr(tokenize, "TASK", 2**16 if count > 1 else 2**19)
    prepare(config(corpus), tmp_path / "set", Effort(workers=count, fast=fast))
    assert files_of(tmp_path / "set") == expected


def test_the_tokens_are_those_of_a_direct_encode(tmp_path):
    texts = random_documents(8, 20_000)
    write_as("jsonl", tmp_path / "c", texts)
    tokenizer = load_tokenizer(small_bpe(tmp_path))
    some = DataConfig(
        text=f"{tmp_path}/c.jsonl", tokenizer=f"{tmp_path}/small.json", validation_fraction=0.0
    )
    prepare(some, tmp_path / "set")
    train = TokenDataset.open(tmp_path / "set").splits["train"]
    direct = [np.append(ids, tokenizer.eot_id) for ids in tokenizer.encode_batch(texts)]
    assert train.read(np.array([0]), train.tokens)[0].tolist() == np.concatenate(direct).tolist()
    assert max(map(len, texts)) > 2**17  # several pieces


@pytest.mark.parametrize("moment", ["task", "state", "shard", "finish"])
def test_a_run_broken_anywhere_goes_on_to_the_same_bytes(
    corpus, expected, tmp_path, monkeypatch, moment
):
    """Ctrl-C again and again, each a little later than the last."""
    monkeypatch.setattr(tokenize, "TASK", 2**15)
    monkeypatch.setattr(tokenize, "SAVING_SHARE", 1e9)
    monkeypatch.setattr(tokenize, "FIRST_SAVE", 0)
    broken = {
        "task": (workers.Workers, "encode"),
        "state": (tokenize.DatasetWriter, "save"),
        "shard": (tokenize.DatasetWriter, "add_file"),
        "finish": (tokenize.DatasetWriter, "_commit"),
    }[moment]
    whole = getattr(*broken)
    calls = 0

    def breaking(*arguments):
        nonlocal calls
        calls += 1
        if calls in (2, 3, 5, 9, 17, 40) or (moment == "finish" and calls == 1):
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(*broken, breaking)
    for _ in range(9):
        try:
            prepare(config(corpus), tmp_path / "set", Effort(workers=1))
            break
        except KeyboardInterrupt:
            assert not (tmp_path / "set").exists()
    assert calls > 1
    assert files_of(tmp_path / "set") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_changed_input_is_not_gone_on_with(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenize, "TASK", 2**15)
    monkeypatch.setattr(tokenize, "FIRST_SAVE", 0)
    monkeypatch.setattr(tokenize.DatasetWriter, "_commit", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(config(corpus), tmp_path / "set")
    with pytest.raises(ConfigError, match=r"set\.partial .*\n.*fraction was 0\.2, is 0\.3"):
        prepare(config(corpus, validation_fraction=0.3), tmp_path / "set")


def test_a_worker_that_dies_is_named(corpus, tmp_path, monkeypatch):
    start = workers._Process.encode

    def dying(self, items):
        os.kill(self._process.pid, signal.SIGKILL)
        return start(self, items)

    monkeypatch.setattr(workers._Process, "encode", dying)
    with pytest.raises(RuntimeError, match=r"a worker ended with code -9; .*use fewer --workers"):
        prepare(config(corpus), tmp_path / "set", Effort(workers=2))


def test_an_engine_that_differs_is_found_and_not_used(
    corpus, expected, tmp_path, monkeypatch, capsys
):
    class Wrong(FastEngine):
        def _sample(self, texts):
            return list(range(len(texts)))

        def encode(self, texts):
            self._fast = Offset(self._fast)
            return super().encode(texts)

    class Offset:
        def __init__(self, fast):
            self.fast = fast

        def encode_batch_flat(self, texts, **options):
            flat, offsets = self.fast.encode_batch_flat(texts, **options)
            ids = np.frombuffer(flat, np.uint32).copy()
            ids[len(ids) // 2] ^= 1
            return ids.tobytes(), offsets

    monkeypatch.setattr("gpt_pjit.data.engines.FastEngine", Wrong)
    prepare(config(corpus), tmp_path / "set", Effort(workers=1))
    assert files_of(tmp_path / "set") == expected
    assert "fastokens differs from tokenizers for the text" in capsys.readouterr().err


def test_the_first_texts_are_always_checked(corpus):
    tokenizer = load_tokenizer(str(corpus / "small.json"))
    engine = FastEngine(tokenizer)
    engine._tokenizer = load_tokenizer("bytes")
    with pytest.raises(EngineDiffersError, match="for the text 'some words'"):
        engine.encode(["some words"])


HARD = [
    "<|endoftext|> in a text, <|padding|>",
    "e\u0301 composed \u00e9, \u1e9b\u0323",
    "\u0300\u0301 begins with marks",
    " \n\t\r\n  \u00a0\u3000 white space   ",
    "\x00\x01\x7f\u200b\ufeff\U0010ffff",
    "don't they're I'LL 12,345.678",
    "".join(map(chr, np.random.default_rng(0).integers(0x10000, 0x1FFFF, 500).tolist())),
    "",
]


def test_the_fast_engine_agrees_on_hard_texts(corpus):
    tokenizer = load_tokenizer(str(corpus / "small.json"))
    for got, wanted in zip(
        FastEngine(tokenizer).encode(HARD), Engine(tokenizer).encode(HARD), strict=True
    ):
        assert np.array_equal(got, wanted)


MOMENTS = np.random.default_rng(0)


def kill_until_done(arguments, out, kills, longest):
    """How many of up to `kills` SIGKILLs at random moments hit, until the command is done."""
    hits = 0
    while True:
        process = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        try:
            limit = MOMENTS.uniform(0.1, longest) if hits < kills else None
            _, errors = process.communicate(timeout=limit)
            assert process.returncode == EXIT_DONE, errors
            return hits
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            hits += 1
            assert not out.exists() or TokenDataset.open(out)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 4])
def test_25_kills_at_random_moments_leave_the_same_bytes(corpus, tmp_path, count):
    write_as("jsonl", tmp_path / "c", random_documents(1000, 600))
    arguments = [
        *(sys.executable, "-m", "gpt_pjit.data", "tokenize", f"{tmp_path}/c.jsonl"),
        *(f"--tokenizer={corpus}/small.json", "--engine=tokenizers", f"--workers={count}"),
    ]
    begun = time.monotonic()
    whole = tmp_path / "whole"
    subprocess.run([*arguments, f"--out={whole}"], cwd=ROOT, check=True, capture_output=True)
    longest = time.monotonic() - begun
    hits = 0
    while hits < 25:
        out = tmp_path / f"killed-{hits}"
        hits += kill_until_done([*arguments, f"--out={out}"], out, 25 - hits, longest)
        assert files_of(out) == files_of(whole)
    assert not list(tmp_path.glob("*.partial"))


def test_the_command_makes_checks_and_shows_a_set(corpus, expected, tmp_path):
    out = tmp_path / "set"
    run = {"cwd": ROOT, "capture_output": True, "text": True}
    made = subprocess.run(command(corpus, out), **run)
    assert made.returncode == EXIT_DONE, made.stderr
    assert files_of(out) == expected
    for words in ("changed by the tokenizer's normaliser", "bytes a token", "50% "):
        assert words in made.stdout
    again = subprocess.run(command(corpus, out), **run)
    assert f"{out} is there already, of the same input" in again.stdout
    for arguments, code, words in (
        (["info", out], EXIT_DONE, "600 ids, uint16"),
        (["info", out, "--json"], EXIT_DONE, '"vocab_size": 600'),
        (["verify", out], EXIT_DONE, "every checksum and hash is right"),
        (["show", out, "--start=5", "--tokens=9"], EXIT_DONE, "document 0, from its token 5"),
        (["show", out, "--start=99999999"], EXIT_CONFIG, "it holds train of"),
        (["info", tmp_path], EXIT_CONFIG, "not a token dataset"),
        (["tokenise"], EXIT_CONFIG, "choose from"),
        (["info", out, "--verbose"], EXIT_CONFIG, "--verbose"),
    ):
        done = subprocess.run([sys.executable, "-m", "gpt_pjit.data", *map(str, arguments)], **run)
        assert done.returncode == code, done.stderr
        assert words in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_the_command_trains_tokenizers_and_shows_an_example(corpus, expected, tmp_path):
    (tmp_path / "set").mkdir()
    for name, content in expected.items():
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    data = ["data.text=", "data.text_exclude=", f"data.path={tmp_path}/set", "model.vocab_size=600"]
    data += ["data.tokenizer=bytes"]
    example = ["show", "--config=configs/quickstart.py", *(f"--config.{field}" for field in data)]
    train = ["train_tokenizer", f"{corpus}/1.jsonl.gz"]
    for arguments, code, words in (
        ([*train, "--vocab_size=300", f"--out={tmp_path}/t.json"], EXIT_DONE, "t.json: 300 ids"),
        ([*train, "--vocab_size=350", f"--out={tmp_path}/t.model"], EXIT_DONE, "t.model: 350 ids"),
        ([*train, "--vocab_size=9999999", f"--out={tmp_path}/u.model"], EXIT_CONFIG, "too high"),
        ([*train, "--vocab_size=20", f"--out={tmp_path}/u.json"], EXIT_CONFIG, "at least 300"),
        ([*train, "--vocab_size=300", f"--out={tmp_path}/u.txt"], EXIT_CONFIG, "FILE.json or"),
        ([*example, "--step=2", "--row=3"], EXIT_DONE, "example 67, row 3 of step 2\ntokens "),
        ([*example, "--step=2", "--row=32"], EXIT_CONFIG, "below the batch size, 32"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "gpt_pjit.data", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
        assert words in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_ctrl_c_says_that_the_command_goes_on(corpus, tmp_path):
    write_as("jsonl", tmp_path / "c", random_documents(1500, 600))
    arguments = [
        *(sys.executable, "-m", "gpt_pjit.data", "tokenize", f"{tmp_path}/c.jsonl"),
        *(f"--tokenizer={corpus}/small.json", "--engine=tokenizers", f"--out={tmp_path}/set"),
    ]
    process = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "set.partial/state.npz").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == EXIT_INTERRUPTED, errors
    assert "the same command goes on from where it saved" in errors
    assert "Traceback" not in errors


NEOX = ROOT.parent / "shared/data/neox_tokenizer/20B_tokenizer.json"
PEPS = ROOT.parent / "shared/data/text_peps/peps.jsonl"


@pytest.mark.shared_data
@pytest.mark.skipif(not NEOX.exists(), reason="wants ../shared/data")
def test_the_fast_engine_agrees_with_the_neox_tokenizer():
    lines = PEPS.read_text().splitlines()[::10]
    texts = [*HARD, *(json.loads(line)["text"] for line in lines), *random_documents(50, 500)]
    tokenizer = load_tokenizer(str(NEOX))
    fast, slow = FastEngine(tokenizer).encode(texts), Engine(tokenizer).encode(texts)
    assert all(map(np.array_equal, fast, slow))
