"""Compiled programs are kept in private, and what is damaged, full or refused costs time alone."""

import os
import stat
import sys
import threading

import jax
import pytest
from jax._src import compilation_cache

from gpt_pjit.core.runtime import programs
from gpt_pjit.core.runtime.programs import ProgramCache, keep_programs
from tests.helpers import write_texts
from tests.processes import logged, run, run_flags

KEY, PROGRAM = "jit_step-0123", bytes(range(64)) * 2


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def test_what_was_put_is_got_by_any_process(folder):
    ProgramCache(folder).put(KEY, PROGRAM)
    assert ProgramCache(folder).get(KEY) == PROGRAM
    assert ProgramCache(folder).get("jit_step-4567") is None


def test_whatever_is_damaged_is_compiled_and_replaced(folder):
    cache = ProgramCache(folder)
    cache.put(KEY, PROGRAM)
    good = (folder / KEY).read_bytes()
    flips = [
        good[:i] + bytes([good[i] ^ 1 << bit]) + good[i + 1 :]
        for i in range(len(good))
        for bit in range(8)
    ]
    for bad in [*flips, *(good[:n] for n in range(len(good))), good + b"\0"]:
        (folder / KEY).write_bytes(bad)
        assert cache.get(KEY) is None
    (folder / "jit_step-4567").write_bytes(good)  # of another program
    assert cache.get("jit_step-4567") is None
    cache.put(KEY, PROGRAM)
    assert cache.get(KEY) == PROGRAM


def test_what_was_used_longest_ago_goes_first(folder):
    cache = ProgramCache(folder, most=3 * (len(PROGRAM) + programs.CHECKSUM))
    (folder / "tmpdraft").write_bytes(b"of a killed process")
    os.utime(folder / "tmpdraft", (0, 0))
    for age, key in enumerate("abc"):
        cache.put(key, PROGRAM)
        os.utime(folder / key, (age + 1, age + 1))
    assert cache.get("a") == PROGRAM  # and is the newest now
    cache.put("d", PROGRAM)
    assert {path.name for path in folder.iterdir()} == {"a", "c", "d"}


def test_many_at_once_do_not_harm_each_other(folder):
    """Each sees a program whole or not at all, while all put, get and remove."""
    wrong, start = [], threading.Barrier(8)

    def work(seed):
        cache = ProgramCache(folder, most=4 * len(PROGRAM) * 50)
        start.wait()
        for turn in range(60):
            number = (seed * 7 + turn) % 10
            program = bytes([number]) * len(PROGRAM) * 50
            if cache.get(str(number)) not in (None, program):
                wrong.append(number)
            cache.put(str(number), program)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert not list(folder.glob("tmp*"))


@pytest.mark.parametrize("fails", ["write", "replace"])
def test_a_full_or_read_only_home_is_one_warning(folder, monkeypatch, capsys, fails):
    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    if fails == "write":
        monkeypatch.setattr(programs.tempfile, "NamedTemporaryFile", refuse)
    else:
        monkeypatch.setattr(programs.Path, "replace", refuse)
    cache = ProgramCache(folder)
    for key in "ab":
        cache.put(key, PROGRAM)
        assert cache.get(key) is None
    line = f"warning: {folder}: compiled programs are not kept: No space left on device\n"
    assert capsys.readouterr().err == line
    assert not list(folder.iterdir())


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of its own, in which nothing is kept yet."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(compilation_cache, "_cache", None)
    monkeypatch.setattr(compilation_cache, "_cache_initialized", False)
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    yield tmp_path
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


def kept_in():
    return getattr(compilation_cache._cache, "_path", None)


def test_the_folder_is_the_users_alone(home, monkeypatch):
    keep_programs()
    assert kept_in() == home / ".cache" / "gpt_pjit" / "xla"
    assert stat.S_IMODE(kept_in().stat().st_mode) == 0o700
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "elsewhere"))
    keep_programs()
    assert kept_in() == home / "elsewhere" / "gpt_pjit" / "xla"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the standard says to ignore
    keep_programs()
    assert kept_in() == home / ".cache" / "gpt_pjit" / "xla"


def open_to_all(folder):
    folder.mkdir(parents=True)
    folder.chmod(0o777)


def of_another_user(folder):
    folder.mkdir(parents=True, mode=0o700)
    os.chown(folder, 4321, 4321)


def a_file(folder):
    folder.parent.mkdir(parents=True)
    folder.write_text("")


@pytest.mark.parametrize("make", [open_to_all, of_another_user, a_file])
def test_a_folder_that_others_could_fill_is_not_used(home, capsys, make):
    if make is of_another_user and os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    make(home / ".cache" / "gpt_pjit" / "xla")
    keep_programs()
    assert kept_in() is None
    assert "warning: compiled programs are not kept: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "value"),
    [("jax_compilation_cache_dir", "/of/the/user"), ("jax_enable_compilation_cache", False)],
)
def test_settings_of_jax_win(home, setting, value):
    before = getattr(jax.config, setting)
    jax.config.update(setting, value)
    try:
        keep_programs()
    finally:
        jax.config.update(setting, before)
    assert kept_in() is None
    assert not (home / ".cache").exists()


FLAGS = {
    "model.n_layers": 1,
    "model.d_model": 32,
    "model.d_ff": 32,
    "model.n_heads": 2,
    "model.dropout_residual": 0.1,
    "data.sequence_length": 16,
    "data.batch_size": 8,
    "optim.steps": 4,
    "eval.every": 4,
}


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return bytes(content)


@pytest.mark.slow
@pytest.mark.long
def test_a_kept_program_computes_the_same_bits_and_a_damaged_one_is_compiled(tmp_path):
    """Three runs: cold, warm, which compiles nothing, and with a flipped bit in each program."""
    (tmp_path / "texts").mkdir()
    write_texts(tmp_path / "texts", files=30, lines=20)
    fields = FLAGS | {"data.text": f"{tmp_path}/texts/*.txt"}
    kept = tmp_path / "home" / "gpt_pjit" / "xla"

    def train(name):
        command = [sys.executable, "-m", "gpt_pjit.main", *run_flags(tmp_path / name, fields)]
        ended = run(command, devices=2, XDG_CACHE_HOME=str(tmp_path / "home"))
        assert ended.returncode == 0, ended.stderr
        losses = [
            {name: x for name, x in line.items() if name.startswith(("train/", "val"))}
            for line in logged(tmp_path / name)
        ]
        return losses, {path: path.stat().st_ino for path in kept.iterdir()}

    losses, files = train("cold")
    assert len(losses) == 5
    assert any("train_step" in path.name for path in files)
    again, same_files = train("warm")
    assert again == losses
    assert same_files == files
    damaged = {path: flip_a_bit(path) for path in files}
    again, _ = train("damaged")
    assert again == losses
    assert all(path.read_bytes() != bad for path, bad in damaged.items())
