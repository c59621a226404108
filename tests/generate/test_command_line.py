"""The command: prompts from flags, files and stdin; text as it comes, or JSON; mistakes."""

import functools
import io
import json
import os
import sys

import pytest

from gpt_pjit.commandline import run_command
from gpt_pjit.core.errors import EXIT_CONFIG, EXIT_DONE
from gpt_pjit.core.tokens import load_tokenizer
from gpt_pjit.generate import Continuation, command
from gpt_pjit.trained import load_trained
from tests.helpers import make_workdir, tiny
from tests.processes import run as run_process, start_run, wait_for_end


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate") / "run"
    make_workdir(folder, tiny(model={"vocab_size": 264}))
    return folder


load_once = functools.cache(load_trained)  # so that what it compiled is found again


@pytest.fixture
def run(workdir, monkeypatch, capsys):
    """Runs the command in this process, whose devices are started; gives exit code and outputs."""
    monkeypatch.setattr(command, "start_devices", lambda **_: None)
    monkeypatch.setattr(command, "load_trained", load_once)

    def run(*arguments, stdin="", checkpoint=workdir):
        given = stdin if isinstance(stdin, bytes) else stdin.encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), encoding="ascii"))
        argv = [f"--checkpoint={checkpoint}", *arguments]
        code = EXIT_DONE
        try:
            run_command("gpt_pjit.generate.command", prog="gpt_pjit generate", argv=argv)
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


def test_json_and_terminal_say_the_same(run, tmp_path):
    files = [tmp_path / "two.txt", tmp_path / "three.txt"]
    files[0].write_text("two\nlines\n")
    files[1].write_text("three")
    flags = ["--prompt=one", *(f"--prompt_file={file}" for file in files), "--num_samples=2"]
    flags += ["--max_new_tokens=40", "--tensor=4", "--stop=e", "--top_p=0.9"]
    code, output, _ = run(*flags, "--json")
    record = json.loads(output)
    assert code == EXIT_DONE
    assert record["step"] == 1
    results = record["results"]
    assert [result["prompt"] for result in results] == [
        *("one", "one", "two\nlines", "two\nlines", "three", "three")
    ]
    assert results[0]["text"] != results[1]["text"]
    for result in results:
        assert "e" not in result["text"]
        assert result["finish_reason"] in ("stop", "length")
        assert len(result["tokens"]) <= 40
    code, output, error = run(*flags)
    shown = [
        f"--- {i} of 6\n{result['prompt']}{result['text']}\n" for i, result in enumerate(results, 1)
    ]
    assert output == "".join(shown)
    assert error.startswith(f"{sum(len(result['tokens']) for result in results)} tokens")


def test_a_prompt_from_stdin_is_utf8_and_may_be_empty(run):
    flags = ["--max_new_tokens=16", "--json"]
    for given, prompt in (("", ""), ("s\u00e4y:\n", "s\u00e4y:")):
        code, output, _ = run(*flags, stdin=given)
        (result,) = json.loads(output)["results"]
        assert (code, result["prompt"]) == (EXIT_DONE, prompt)
        assert result["tokens"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prompt=a", "--top_p=1.5"], "top_p=1.5: must be in (0, 1]"),
        (["--prompt=a", "--temperature=nan"], "temperature=nan: must be finite, 0 or above"),
        (["--prompt=a", "--tensor=32"], "tensor=32: must divide the model's 4 heads; try 1, 2, 4"),
        (["--prompt=a", "--num_samples=0"], "--num_samples: '0' is not a positive integer"),
        (["--prompt=a", "--dtype=float16"], "invalid choice: 'float16'"),
        (["--prompt=a", "--prompt=\udcff"], "--prompt is not UTF-8"),
        (["--prompt=a", "--max_new_tokens=0", "--checkpoint=nowhere"], "max_new_tokens=0: must be"),
        (["--prompt_file=nowhere.txt"], "nowhere.txt cannot be read: No such file"),
        (["--prompt=a", "--checkpoint=nowhere"], "nowhere is not a folder; give the --workdir"),
    ],
)
def test_a_mistake_is_one_message(run, flags, words):
    code, output, error = run(*flags)
    assert (code, output) == (EXIT_CONFIG, "")
    assert words in error
    assert "Traceback" not in error


def test_what_the_terminal_cannot_print_is_escaped(run, monkeypatch):
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii"))
    code, _, error = run("--prompt=Gr\u00fc\u4e16", "--max_new_tokens=16")
    sys.stdout.flush()
    assert code == EXIT_DONE
    assert "Traceback" not in error
    assert printed.getvalue().startswith(b"Gr\\xfc\\u4e16")


def test_stdin_that_is_not_utf8_is_one_message(run):
    code, _, error = run(stdin=b"caf\xe9")
    assert code == EXIT_CONFIG
    assert "stdin is not UTF-8" in error


def test_a_reader_that_goes_away_ends_it_in_silence(run, monkeypatch):
    read, written = os.pipe()
    os.close(read)
    with os.fdopen(written, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        code, _, error = run("--prompt=a", "--max_new_tokens=16")
        closed.flush()
    assert (code, error) == (EXIT_DONE, "")


def test_the_terminal_shows_rows_in_order_as_they_grow(capsys):
    rows = [Continuation(load_tokenizer("bytes"), [], 4) for _ in range(2)]
    transcript = command.Transcript(["A:", "B:"])
    expected = ["--- 1 of 2\nA:a", "b", "cd\n--- 2 of 2\nB:xy", "z!\n"]
    came = (("a", "x"), ("b", "y"), ("cd", ""), ("", "z!"))
    for (first, second), shown in zip(came, expected, strict=True):
        rows[0].add(list(first.encode()))
        rows[1].add(list(second.encode()))
        transcript.show(rows)
        assert capsys.readouterr().out == shown


@pytest.mark.slow
def test_two_processes_write_what_one_does_and_only_the_first_speaks(workdir):
    flags = ["--prompt=hello", "--max_new_tokens=24", f"--checkpoint={workdir}", "--json"]
    python = [sys.executable, "-m", "gpt_pjit.generate", *flags, "--tensor=2"]
    alone = run_process(python, devices=2)
    ends = wait_for_end(start_run(2, python, devices=2))
    assert [end.returncode for end in (alone, *ends)] == [EXIT_DONE] * 3, ends
    first, second = (
        [line for line in output.splitlines() if "[Gloo]" not in line]  # JAX's own, on stdout
        for output in (end.stdout for end in ends)
    )
    assert json.loads("".join(first))["results"] == json.loads(alone.stdout)["results"]
    assert second == []
