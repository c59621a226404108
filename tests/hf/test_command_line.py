"""`python -m gpt_pjit.hf`: what a person, and a program, reads."""

import json
from functools import partial

import pytest

from gpt_pjit.core.errors import EXIT_CONFIG, EXIT_DONE
from tests.helpers import run_command_here, tiny
from tests.hf.ours import write_run


@pytest.fixture
def call(capsys):
    return partial(run_command_here, capsys, "hf")


def test_out_and_in_again(call, tmp_path):
    write_run(tmp_path / "run", tiny(model={"d_ff": 256}))
    given = f"--checkpoint={tmp_path / 'run'}", f"--out={tmp_path / 'hf'}"
    code, output, _ = call("export", *given, "--json", "--dtype=bfloat16")
    record = json.loads(output)
    assert (code, record["family"], record["max_length"]) == (EXIT_DONE, "MptForCausalLM", 128)
    code, output, _ = call("import", f"--source={tmp_path / 'hf'}", f"--out={tmp_path / 'again'}")
    assert code == EXIT_DONE
    assert "mpt, 2 layers, 4 heads, width 64, vocabulary 512, context 32" in output
    code, output, error = call("export", *given)
    assert (code, output) == (EXIT_CONFIG, "")
    assert "already exists" in error


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("export", "--out=x", "--checkpoint=x", "--source=y"), "unrecognized arguments: --source"),
        (("export", "--checkpoint=nowhere"), "the following arguments are required: --out"),
        (
            ("export", "--checkpoint=nowhere", "--out=x"),
            "nowhere is not a folder; give the --workdir",
        ),
        (("import", "--source=x", "--out=y", "--dtype=float32"), "unrecognized arguments: --dtype"),
        (("export", "--checkpoint=x", "--out=gs://b/x"), "'gs://b/x' is a URL; give a path on"),
        ((), "the following arguments are required: command"),
    ],
)
def test_a_mistake_is_one_message(call, flags, says):
    code, output, error = call(*flags)
    assert (code, output) == (EXIT_CONFIG, "")
    assert says in error


def test_help_is_not_a_mistake(call):
    code, output, _ = call("--help")
    assert code == EXIT_DONE
    assert "export" in output
