"""The set depends on the input alone: not on workers, interruptions or kills."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gpt_pjit.commandline import run_command
from gpt_pjit.config import DataConfig
from gpt_pjit.core.errors import EXIT_CONFIG, EXIT_DONE, EXIT_FAULT, EXIT_INTERRUPTED, ConfigError
from gpt_pjit.core.tokens import TokenDataset, load_tokenizer
from gpt_pjit.data import Corpus, TokenizeOptions, prepare, tokenize as module
from gpt_pjit.data.prepare import sentences
from tests.data.corpora import documents, files_of, random_documents, small_bpe, tokenize, write_as
from tests.processes import ROOT, Process, run as run_process, wait_for_end


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Files of several kinds, 1.2 MB of text, and a tokenizer."""
    folder = tmp_path_factory.mktemp("corpus")
    for i, kind in enumerate(("txt", "jsonl.gz", "parquet", "jsonl.zst", "jsonl")):
        write_as(kind, folder / f"{i}", random_documents(40 + 20 * i, 200, seed=i))
    small_bpe(folder)
    (folder / "0/long.txt").write_text("".join(random_documents(100, 400)))
    return folder


def make(corpus, out, workers=0, fraction=0.2, engine="tokenizers"):
    inputs = (f"{corpus}/*.*", f"{corpus}/0/*")
    some = Corpus(inputs, r".*small\.json", validation_fraction=fraction)
    return prepare(some, f"{corpus}/small.json", out, TokenizeOptions(workers, engine=engine))


@pytest.fixture(scope="module")
def expected(corpus, tmp_path_factory):
    """The files of the set from an unbroken run in this process."""
    folder = tmp_path_factory.mktemp("expected") / "set"
    make(corpus, folder, workers=1)
    TokenDataset.open(folder).verify()
    return files_of(folder)


def command(corpus, out, *flags):
    return [
        *(sys.executable, "-m", "gpt_pjit.data", "tokenize", f"{corpus}/*.*", f"{corpus}/0/*"),
        *(r"--exclude=.*small\.json", f"--tokenizer={corpus}/small.json", f"--out={out}"),
        *("--validation_fraction=0.2", *flags),
    ]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_workers_do_not_matter(corpus, expected, tmp_path, count, monkeypatch):
    monkeypatch.setattr(module, "TASK", 2**16)
    make(corpus, tmp_path / "set", count)
    assert files_of(tmp_path / "set") == expected


@pytest.mark.parametrize("count", [1, 2])
def test_fastokens_gives_the_same_set(corpus, expected, tmp_path, count):
    make(corpus, tmp_path / "set", count, engine="fastokens")
    assert files_of(tmp_path / "set") == expected


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
NEOX = ROOT.parent / "shared/data/neox_tokenizer/20B_tokenizer.json"
NO_NEOX = pytest.mark.skipif(not NEOX.exists(), reason="wants ../shared/data")


@pytest.mark.parametrize("path", ["", pytest.param(NEOX, marks=[pytest.mark.shared_data, NO_NEOX])])
def test_fastokens_agrees_on_hard_texts(corpus, path):
    tokenizer = load_tokenizer(str(path or corpus / "small.json"))
    texts = [*HARD, *random_documents(50, 500)]
    fast = module._with_engine(tokenizer, "fastokens").encode_batch(texts)
    assert all(map(np.array_equal, fast, tokenizer.encode_batch(texts)))
    assert module._with_engine(tokenizer, "fastokens").encode_batch([]) == []


def test_fastokens_without_its_kind_of_tokenizer_is_named(corpus, tmp_path):
    arguments = (Corpus((f"{corpus}/4.jsonl",)), "bytes", tmp_path / "set")
    with pytest.raises(ConfigError, match="fastokens cannot encode with tokenizer bytes"):
        prepare(*arguments, TokenizeOptions(engine="fastokens"))


def test_workers_do_not_import_jax():
    program = "import sys, gpt_pjit.core.tokens, gpt_pjit.data, gpt_pjit.data.command as c\n"
    program += "assert not {'jax', 'grain', 'flax', 'orbax'} & sys.modules.keys()\n"
    assert run_process([sys.executable, "-c", program]).returncode == 0
    with module._workers(2, ROOT, load_tokenizer("bytes"), "tokenizers") as pool:
        assert not pool.submit(eval, "'jax' in __import__('sys').modules").result()


def test_the_tokens_are_those_of_a_direct_encode(tmp_path):
    texts = random_documents(8, 20_000)
    write_as("jsonl", tmp_path / "c", texts)
    tokenizer = load_tokenizer(small_bpe(tmp_path))
    tokenize(
        tmp_path / "c.jsonl", tmp_path / "set", f"{tmp_path}/small.json", validation_fraction=0.0
    )
    train = TokenDataset.open(tmp_path / "set").splits["train"]
    direct = [np.append(ids, tokenizer.eot_id) for ids in tokenizer.encode_batch(texts)]
    assert train.read(np.array([0]), train.tokens)[0].tolist() == np.concatenate(direct).tolist()
    assert max(map(len, texts)) > 2**17  # several pieces


def save_often(monkeypatch, task):
    """After each task, of so many bytes."""
    monkeypatch.setattr(module, "TASK", task)
    monkeypatch.setattr(module, "SAVING_SHARE", 1e9)
    monkeypatch.setattr(module, "FIRST_SAVE", 0)


@pytest.mark.parametrize("moment", ["task", "state", "shard", "finish"])
def test_a_run_broken_anywhere_is_resumed_to_the_same_bytes(
    corpus, expected, tmp_path, monkeypatch, moment
):
    """Ctrl-C again and again, each a little later than the last."""
    save_often(monkeypatch, 2**15)
    broken = {
        "task": (module.BadInput, "report"),
        "state": (module.DatasetWriter, "save"),
        "shard": (module.DatasetWriter, "add_file"),
        "finish": (module.DatasetWriter, "_commit"),
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
            make(corpus, tmp_path / "set", workers=1)
            break
        except KeyboardInterrupt:
            assert not (tmp_path / "set").exists()
    assert calls > 1
    assert files_of(tmp_path / "set") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_changed_input_is_not_resumed(corpus, tmp_path, monkeypatch):
    save_often(monkeypatch, 2**15)
    monkeypatch.setattr(module.DatasetWriter, "_commit", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make(corpus, tmp_path / "set")
    with pytest.raises(ConfigError, match=r"set\.partial .*\n.*fraction was 0\.2, is 0\.3"):
        make(corpus, tmp_path / "set", fraction=0.3)


def test_skipped_documents_are_counted_over_a_resumed_run(tmp_path, monkeypatch):
    save_often(monkeypatch, 2**12)
    lines = [json.dumps({"text": f"{i} " * 300}) if i % 7 else "{" for i in range(1400)]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    encode, calls = module._encode, 0

    def breaking(*arguments):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(module, "_encode", breaking)
    some = (tmp_path / "c.jsonl", tmp_path / "set")
    with pytest.raises(KeyboardInterrupt):
        tokenize(*some, workers=1, skip=True)
    counts = tokenize(*some, workers=1, skip=True)
    assert (counts["documents"], counts["skipped"]) == (1200, 200)


def killed_worker(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_one_sentence(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_encode", killed_worker)
    with pytest.raises(ConfigError, match=r"a worker process was killed.*fewer --workers"):
        make(corpus, tmp_path / "set", workers=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no text to train on: 0 documents, 0 of them empty, 0 skipped"),
        ('{"text": ""}\n' * 3, "3 documents, 3 of them empty, 0 skipped"),
        ("{\n[]\n", "0 documents, 0 of them empty, 2 skipped"),
    ],
)
def test_a_set_without_text_is_an_error(tmp_path, content, message):
    (tmp_path / "c.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=message):
        tokenize(tmp_path / "c.jsonl", tmp_path / "set", skip=True)
    assert [path.name for path in tmp_path.iterdir()] == ["c.jsonl"]


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
@pytest.mark.parametrize(
    ("count", "kills"),
    [(2, 6), *(pytest.param(*case, marks=pytest.mark.long) for case in ((1, 6), (2, 25)))],
)
def test_kills_at_random_moments_leave_the_same_bytes(corpus, tmp_path, count, kills):
    write_as("jsonl", tmp_path / "c", random_documents(1000, 600))
    arguments = [
        *(sys.executable, "-m", "gpt_pjit.data", "tokenize", f"{tmp_path}/c.jsonl"),
        *(f"--tokenizer={corpus}/small.json", f"--workers={count}"),
    ]
    started = time.monotonic()
    whole = tmp_path / "whole"
    assert run_process([*arguments, f"--out={whole}"]).returncode == EXIT_DONE
    longest = time.monotonic() - started
    hits = 0
    while hits < kills:
        out = tmp_path / f"killed-{hits}"
        hits += kill_until_done([*arguments, f"--out={out}"], out, kills - hits, longest)
        assert files_of(out) == files_of(whole)
    assert not list(tmp_path.glob("*.partial"))


def run(*arguments, capsys=None, cwd=ROOT):
    """Exit code, and all output, of the command in this process."""
    with pytest.raises(SystemExit) as done:
        run_command("gpt_pjit.data.command", "gpt_pjit data", [str(a) for a in arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return done.value.code, captured.out + captured.err


def test_the_command_makes_checks_and_shows_a_set(corpus, expected, tmp_path, capsys):
    out = tmp_path / "set"
    made = run_process(command(corpus, out))
    assert made.returncode == EXIT_DONE, made.stderr
    assert files_of(out) == expected
    for words in ("changed by the tokenizer's normaliser", "bytes a token", "50% "):
        assert words in made.stdout
    code, text = run(*command(corpus, out)[3:], capsys=capsys)
    assert (code, f"{out} already exists, made from the same input" in text) == (EXIT_DONE, True)
    for arguments, wanted, words in (
        (["info", out], EXIT_DONE, "600 ids, uint16"),
        (["info", out, "--json"], EXIT_DONE, '"vocab_size": 600'),
        (["verify", out], EXIT_DONE, "every checksum and hash is right"),
        (["show", out, "--start=5", "--tokens=9"], EXIT_DONE, "document 0, from its token 5"),
        (["show", out, "--start=99999999"], EXIT_CONFIG, "tokens in train"),
        (["info", tmp_path], EXIT_CONFIG, "not a token dataset"),
        (["tokenise"], EXIT_CONFIG, "choose from"),
        (["info", out, "--verbose"], EXIT_CONFIG, "--verbose"),
    ):
        code, text = run(*arguments, capsys=capsys)
        assert code == wanted, text
        assert words in text


def test_the_command_trains_tokenizers_and_shows_an_example(corpus, expected, tmp_path, capsys):
    for name, content in expected.items():
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    data = ["data.text=", "data.text_exclude=", f"data.path={tmp_path}/set", "model.vocab_size=600"]
    data += ["data.tokenizer=bytes"]
    example = ["show", "--config=tests/run_config.py", *(f"--config.{field}" for field in data)]
    example.append(f"--workdir={tmp_path}/run")  # not that of a quickstart in this checkout
    train = ["train_tokenizer", f"{corpus}/1.jsonl.gz"]
    for arguments, wanted, words in (
        ([*train, "--vocab_size=300", f"--out={tmp_path}/t.json"], EXIT_DONE, "t.json: 300 ids"),
        ([*train, "--vocab_size=350", f"--out={tmp_path}/t.model"], EXIT_DONE, "t.model: 350 ids"),
        ([*train, "--vocab_size=9999999", f"--out={tmp_path}/u.model"], EXIT_CONFIG, "too high"),
        ([*train, "--vocab_size=20", f"--out={tmp_path}/u.json"], EXIT_CONFIG, "below 300"),
        ([*train, "--vocab_size=300", f"--out={tmp_path}/u.txt"], EXIT_CONFIG, "FILE.json nor"),
    ):
        code, text = run(*arguments, capsys=capsys)
        assert code == wanted, text
        assert words in text
    for row, wanted, words in (
        (3, EXIT_DONE, "example 67 of its set, row 3 of step 2\ntokens "),
        (32, EXIT_CONFIG, "--row=32: step 2 has 32 rows"),
    ):
        arguments = [sys.executable, "-m", "gpt_pjit.data", *example, "--step=2", f"--row={row}"]
        done = run_process(arguments)
        assert done.returncode == wanted, done.stderr
        assert words in done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["json", "model"])
def test_commands_treat_bad_input_alike(tmp_path, kind, capsys):
    lines = [json.dumps({"text": text}) for text in random_documents(100, 200)]
    (tmp_path / "c.jsonl").write_text("\n".join([*lines, "{"]))
    out, size = tmp_path / f"t.{kind}", "--vocab_size=300"
    train = ["train_tokenizer", tmp_path / "c.jsonl", size, f"--out={out}"]
    make_set = ["tokenize", tmp_path / "c.jsonl", "--tokenizer=bytes", f"--out={tmp_path}/set"]
    for arguments in (train, make_set):
        for flags, words in (
            (["--column=content"], r"c.jsonl:1: has no field 'content', but text"),
            ([], "c.jsonl:101: is not JSON"),
            (["--column=content", "--on_error=skip"], "no text to train on"),
        ):
            code, text = run(*arguments, *flags, capsys=capsys)
            assert (code, words in text) == (EXIT_CONFIG, True), text
        assert not out.exists()
        assert not (tmp_path / "set").exists()
    for arguments in (train, make_set):
        code, text = run(*arguments, "--on_error=skip", capsys=capsys)
        assert code == EXIT_DONE, text
        assert "skipped: " in text


NAMES = ["my novel.txt", "a[1].txt", "*.txt", "?.txt", "~.txt", "\u00fcber \u732b.txt", "{x}.txt"]


def test_a_path_is_that_file_whatever_its_name(tmp_path, capsys, monkeypatch):
    """`tokenize *.txt` of a shell, from a folder with an odd name, into one."""
    folder = tmp_path / "a [b] *"
    folder.mkdir()
    for name in [*NAMES, "a1.txt"]:
        (folder / name).write_text(name)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    (tmp_path / "link.txt").symlink_to(folder / "a1.txt")
    inputs = [*NAMES, str(tmp_path / "link.txt"), "~/a1.txt"]
    flags = ["--tokenizer=bytes", "--out=~/set [1] %20", "--validation_fraction=0"]
    code, text = run("tokenize", *inputs, *flags, capsys=capsys)
    assert code == EXIT_DONE, text
    for path in ("~/set [1] %20", "set [1] %20"):
        assert run("verify", path, capsys=capsys)[0] == EXIT_DONE
    assert sorted(documents("set [1] %20")["train"]) == sorted([*NAMES, "a1.txt"])


def test_an_existing_path_with_spaces_is_one_input_of_a_config(tmp_path):
    for name in ("my novel.txt", "other.txt"):
        (tmp_path / name).write_text(name)
    for text, inputs in (
        (f"{tmp_path}/my novel.txt", 1),
        (f"{tmp_path}/my *.txt", 1),
        (f"{tmp_path}/other.txt {tmp_path}/*.txt", 2),
    ):
        assert len(Corpus.of_config(DataConfig(text=text)).inputs) == inputs


def test_a_file_reached_twice_counts_once(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(5):
        (folder / f"{i}.txt").write_text(f"document {i}")
    (folder / "loop").symlink_to(folder)
    os.link(folder / "1.txt", folder / "hard.txt")
    (folder / "soft.txt").symlink_to("2.txt")
    inputs = [folder / "**/*.txt", folder / "3.txt", f"{folder}/../texts/*.txt"]
    assert tokenize(inputs, tmp_path / "set")["documents"] == 5
    assert b"loop" not in (tmp_path / "set/source.json").read_bytes()


def test_a_disk_that_takes_no_more_is_one_sentence(corpus, tmp_path):
    line = shlex.join(command(corpus, tmp_path / "set", "--workers=1"))
    limited = ["bash", "-c", f"ulimit -f 48; trap '' XFSZ; exec {line}"]
    done = run_process(limited)
    assert done.returncode == EXIT_FAULT, done.stderr
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["tokenize", "train_tokenizer"])
def test_a_folder_that_cannot_be_written_is_one_sentence(corpus, tmp_path, capsys, command):
    flags = {"tokenize": ["--tokenizer=bytes"], "train_tokenizer": ["--vocab_size=300"]}[command]
    name = {"tokenize": "set", "train_tokenizer": "t.json"}[command]
    (tmp_path / "file").write_text("")
    for out in (f"/proc/none/{name}", f"{tmp_path}/file/{name}"):
        arguments = (command, f"{corpus}/4.jsonl", *flags, f"--out={out}")
        code, text = run(*arguments, capsys=capsys)
        assert (code, "cannot be written" in text) == (EXIT_CONFIG, True), text


def test_unigram_training_is_given_all_the_text():
    long = "word " * 3000 + "\u732b" * 9000 + "\n\u2585x\u2585\n" + "x" * 5000
    texts = [long, "short\r\n", "", *random_documents(50, 500)]
    lines = list(sentences(texts))
    assert "".join(lines) == "".join(texts).replace("\u2585", "")
    assert max(len(line.encode()) for line in lines) <= 4192  # sentencepiece skips longer ones
    assert sum(line.endswith("word") or line == "x" * 1000 for line in lines) > 10


@pytest.mark.slow
def test_ctrl_c_says_that_the_command_resumes(corpus, tmp_path):
    write_as("jsonl", tmp_path / "c", random_documents(1500, 600))
    arguments = [
        *(sys.executable, "-m", "gpt_pjit.data", "tokenize", f"{tmp_path}/c.jsonl"),
        *(f"--tokenizer={corpus}/small.json", f"--out={tmp_path}/set", "--workers=2"),
    ]
    process = Process(arguments)
    deadline = time.monotonic() + 60
    while not (tmp_path / "set.partial/progress.npz").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers hear it too
    (end,) = wait_for_end([process], 60)
    assert end.returncode == EXIT_INTERRUPTED, end
    assert "the same command resumes from where it last saved" in end.stderr
    assert "Traceback" not in end.stderr
