"""Parts that many processes make, joined to the bytes of one process."""

import gzip
import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from gpt_pjit.core.errors import EXIT_CONFIG, EXIT_DONE, ConfigError
from gpt_pjit.core.tokens import TokenDataset
from gpt_pjit.data import Corpus, Share, TokenizeOptions, join, prepare, tokenize as module
from tests.data.corpora import files_of, random_documents, small_bpe, truncated, write_as
from tests.helpers import run_command_here
from tests.processes import ROOT, run


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6), st.integers(1, 9))
def test_every_byte_and_every_empty_file_is_in_one_part_and_in_order(sizes, of):
    shares = [Share(number, of).ranges(sizes) for number in range(1, of + 1)]
    for file, size in enumerate(sizes):
        taken = [share[file] for share in shares]
        assert [byte for one in taken for byte in one] == list(range(max(size, 1)))
    for share in shares:  # no file between two others is left out
        mine = [file for file, taken in enumerate(share) if taken]
        assert mine == list(range(mine[0], mine[-1] + 1)) if mine else True
        assert sum(map(len, share)) <= sum(sizes) / of + 1 + sizes.count(0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Files of all kinds, two of them large, some empty, and a tokenizer."""
    folder = tmp_path_factory.mktemp("corpus")
    for i, kind in enumerate(("txt", "jsonl.gz", "parquet", "jsonl.zst", "jsonl")):
        write_as(kind, folder / f"{i}", random_documents(30, 150, seed=i))
    write_as("jsonl.gz", folder / "5", random_documents(300, 300, seed=5))
    (folder / "6.txt").write_text("".join(random_documents(200, 400, seed=6)))
    (folder / "0/empty.txt").write_text("")
    (folder / "z.md").write_text("")
    small_bpe(folder)
    return folder


def make(corpus, out, share=None, fraction=0.2, tokenizer="bytes", skip=False):
    some = Corpus((f"{corpus}/*.*", f"{corpus}/0/*"), r".*\.json", validation_fraction=fraction)
    tokenizer = f"{corpus}/{tokenizer}" if "." in tokenizer else tokenizer
    options = TokenizeOptions(1, skip, share=share or Share())
    return prepare(some, tokenizer, share.folder(out) if share else out, options)


def make_all(corpus, out, of, **options):
    for number in range(1, of + 1):
        make(corpus, out, Share(number, of), **options)


@pytest.mark.parametrize(("of", "tokenizer"), [(2, "small.json"), (13, "small.json"), (5, "bytes")])
def test_parts_are_joined_to_the_bytes_of_one_process(corpus, tmp_path, of, tokenizer):
    counts = make(corpus, tmp_path / "one", tokenizer=tokenizer)
    make_all(corpus, tmp_path / "set", of, tokenizer=tokenizer)
    joined = join(tmp_path / "set")
    assert files_of(tmp_path / "set") == files_of(tmp_path / "one")
    assert {name: joined[name] for name in counts} == counts
    TokenDataset.open(tmp_path / "set").verify()
    assert join(tmp_path / "set") is None  # it is there
    sizes = [
        sum(split.tokens for split in TokenDataset.open(part).splits.values())
        for part in (tmp_path / "set.parts").iterdir()
    ]
    assert min(sizes) > 0  # large files too are divided
    assert not list(tmp_path.glob("**/*.partial"))


def test_each_file_is_read_by_the_parts_that_it_lies_in(corpus, tmp_path):
    make_all(corpus, tmp_path / "set", 4)
    lists = []
    for part in sorted((tmp_path / "set.parts").iterdir()):
        files = json.loads((part / "source.json").read_text())["files"]
        lists.append({path for path, _, _, sha256 in files if sha256})
    assert all(len(first & second) <= 1 for first, second in pairwise(lists))
    assert max(map(len, lists)) < len(files)


def test_documents_that_are_skipped_are_counted_once(tmp_path):
    lines = [json.dumps({"text": f"{i} " * 300}) if i % 7 else "{" for i in range(700)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.jsonl.gz").write_bytes(truncated(gzip.compress("\n".join(lines).encode())))
    (tmp_path / "c.txt").write_bytes(b"text " * 90_000 + b"\xff")  # in several parts
    (tmp_path / "0").mkdir()
    (tmp_path / "0/d.txt").write_text("a text\n")
    counts = make(tmp_path, tmp_path / "one/set", skip=True)
    make_all(tmp_path, tmp_path / "many/set", 6, skip=True)
    assert join(tmp_path / "many/set")["skipped"] == counts["skipped"] > 100
    assert files_of(tmp_path / "many/set") == files_of(tmp_path / "one/set")


def with_other_fraction(corpus, out):
    shutil.rmtree(Share(3, 4).folder(out))
    make(corpus, out, Share(3, 4), fraction=0.1)


def with_other_tokenizer(corpus, out):
    shutil.rmtree(Share(3, 4).folder(out))
    make(corpus, out, Share(3, 4), tokenizer="small.json")


def with_one_more_file(corpus, out):
    shutil.rmtree(Share(3, 4).folder(out))
    (corpus / "new.txt").write_text("a text of its own")
    make(corpus, out, Share(3, 4))


def with_other_content(corpus, out):
    """Part 2 reads a file anew that lies in parts 1 and 3 too."""
    path = corpus / "5.jsonl.gz"
    content = bytearray(path.read_bytes())
    content[4] ^= 1  # the time in gzip's header
    path.write_bytes(content)
    shutil.rmtree(Share(2, 4).folder(out))
    make(corpus, out, Share(2, 4))


def with_parts_missing(corpus, out):
    for number in (2, 4):
        shutil.rmtree(Share(number, 4).folder(out))


def with_an_unfinished_part(corpus, out):
    Share(2, 4).folder(out).rename(out.parent / "set.parts/2-of-4.partial")


def with_a_damaged_part(corpus, out):
    path = Share(2, 4).folder(out) / "train/tokens/c/0"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


def with_an_incomplete_copy(corpus, out):
    (Share(2, 4).folder(out) / "source.json").unlink()


def with_parts_of_another_number(corpus, out):
    make(corpus, out, Share(1, 3))


def with_a_set_of_another_process(corpus, out):
    (out.parent / "set.partial").mkdir()
    shutil.copytree(out.parent / "set.parts/1-of-4", out.parent / "set.partial/set")


MISTAKES = {
    with_other_fraction: ["part 3: validation_fraction is 0.1, in part 1 0.2"],
    with_other_tokenizer: [", in part 1 'bytes'"],
    with_one_more_file: ["part 3 was made from other files than part 1, such as ", "new.txt"],
    with_other_content: ["5.jsonl.gz differed between the parts"],
    with_parts_missing: ["part 2/4 is missing", "part 4/4 is missing", "with --part=4/4 makes it"],
    with_an_unfinished_part: ["part 2/4 is unfinished"],
    with_a_damaged_part: ["set.parts/2-of-4", "tokens of split 'train' cannot be read"],
    with_an_incomplete_copy: ["part 2/4 is unfinished"],
    with_parts_of_another_number: ["holds parts of 3 and of 4; keep only those of one"],
    with_a_set_of_another_process: ["it was made from other text or settings"],
}


@pytest.fixture
def few(corpus, tmp_path):
    """A smaller corpus, which a test may change."""
    folder = tmp_path / "corpus"
    (folder / "0").mkdir(parents=True)
    for name in ("0/empty.txt", "2.parquet", "5.jsonl.gz", "z.md", "small.json"):
        shutil.copy(corpus / name, folder / name)
    return folder


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_parts_that_do_not_belong_together_are_named(few, tmp_path, mistake):
    make_all(few, tmp_path / "set", 4)
    mistake(few, tmp_path / "set")
    with pytest.raises(ConfigError) as error:
        join(tmp_path / "set")
    for words in MISTAKES[mistake]:
        assert words in str(error.value)
    assert not (tmp_path / "set").exists()


def test_a_part_of_changed_input_is_not_resumed(few, tmp_path):
    """Also where another part's file has changed its size: the parts would not fit."""
    make(few, tmp_path / "set", Share(1, 4))
    (few / "z.md").write_text("longer now")
    with pytest.raises(ConfigError, match=r"1 changed: .*z\.md"):
        make(few, tmp_path / "set", Share(1, 4))


def test_a_set_that_one_process_has_begun_is_left_alone(few, tmp_path, monkeypatch):
    make_all(few, tmp_path / "set", 2)
    with monkeypatch.context() as broken:
        broken.setattr(module, "FIRST_SAVE", 0)
        broken.setattr(module.DatasetWriter, "_commit", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make(few, tmp_path / "set")
    with pytest.raises(ConfigError, match=r"set\.partial .*\n.*`tokenize` has begun; finish it"):
        join(tmp_path / "set")
    make(few, tmp_path / "set")
    assert join(tmp_path / "set") is None


def test_the_command_line_of_parts(corpus, tmp_path, capsys):
    tokenize = ["tokenize", corpus / "4.jsonl", "--tokenizer=bytes", f"--out={tmp_path}/set"]
    for arguments, wanted, words in (
        ([*tokenize, "--part=2/2"], EXIT_DONE, "set.parts/2-of-2: tokenizer bytes"),
        ([*tokenize, "--part=2/2"], EXIT_DONE, "2-of-2 already exists, made from the same input"),
        (["join", tmp_path / "set"], EXIT_CONFIG, "part 1/2 is missing"),
        ([*tokenize, "--part=1/2"], EXIT_DONE, "set.parts/1-of-2: tokenizer bytes"),
        (["join", tmp_path / "set"], EXIT_DONE, "set.parts may be deleted"),
        (["join", tmp_path / "none"], EXIT_CONFIG, "none.parts has 1 problem:\n  holds no parts"),
        ([*tokenize, "--part=3/2"], EXIT_CONFIG, "'3/2' is not K/N, such as 3/16"),
        (["tokenize", "hf:x", *tokenize[2:], "--part=1/2"], EXIT_CONFIG, "--part=1/2 needs files"),
    ):
        code, output, error = run_command_here(capsys, "data", *arguments)
        assert code == wanted, error
        assert words in output + error
    code, output, _ = run_command_here(capsys, "data", "verify", tmp_path / "set")
    assert code == EXIT_DONE


PARTS = 8
KILLED = {1: "set", 4: "progress.npz", 8: "progress.npz"}  # at once, and after a save


def tokenize_part(arguments, out, number):
    """Runs one part; if it is to be killed, by SIGKILL at its moment, and then again."""
    command = [*arguments, f"--out={out}", f"--part={number}/{PARTS}"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    killed = False
    if number in KILLED:
        share = Share(number, PARTS).folder(out)
        sign = share.with_name(f"{share.name}.partial") / KILLED[number]
        while not sign.exists():
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
        killed = process.wait() == -9
        process.communicate()
        assert not share.exists()
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == EXIT_DONE, errors
    return killed


@pytest.mark.slow
@pytest.mark.long
def test_8_parts_by_two_machines_three_of_them_killed(corpus, tmp_path):
    documents = random_documents(4000, 300, seed=7)
    for number in range(2):  # 48 MB, three quarters of it in one packed file
        write_as("jsonl.gz", tmp_path / f"{number}", documents * (1 + 2 * number))
    arguments = [
        *(sys.executable, "-m", "gpt_pjit.data", "tokenize", f"{tmp_path}/*.jsonl.gz"),
        *(f"--tokenizer={corpus}/small.json", "--workers=1"),
    ]
    assert run([*arguments, f"--out={tmp_path}/one"]).returncode == EXIT_DONE
    out = tmp_path / "set"
    with ThreadPoolExecutor(2) as machines:
        halves = [range(1, 5), range(5, 9)]
        work = [
            machines.submit(lambda half: [tokenize_part(arguments, out, n) for n in half], half)
            for half in halves
        ]
        assert sum(sum(half.result()) for half in work) == len(KILLED)
    assert run([sys.executable, "-m", "gpt_pjit.data", "join", out]).returncode == EXIT_DONE
    assert files_of(out) == files_of(tmp_path / "one")
