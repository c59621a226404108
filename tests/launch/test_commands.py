"""Commands in the docs: those of others as they document them, ours with a dry run."""

import itertools
import json
import re
import shlex
import subprocess

import pytest

from tests.helpers import ROOT
from tests.launch.commands import DOCUMENTED, check

DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOREIGN = {name.split()[0] for name in DOCUMENTED}


def commands(path):
    """The commands of the shell blocks of a page, as lists of words; `&&` separates two."""
    for block in re.findall(r"^```sh\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            words: list[str] = []
            for word in [*shlex.split(line, comments=True), "&&"]:
                if word in ("&&", "|"):
                    yield words
                    words = []
                else:
                    words.append(word)


def foreign():
    return [words for path in DOCS for words in commands(path) if words and words[0] in FOREIGN]


def test_commands_of_others_are_as_documented():
    found = foreign()
    assert len(found) > 20
    for words in found:
        check(words)


@pytest.mark.slow
def test_gcloud_itself_accepts_them(tmp_path):
    """A second opinion, where gcloud is installed: its own linter, which sends nothing."""
    lines = {shlex.join(words) for words in foreign() if words[0] == "gcloud"}
    lines = {line.replace("PROJECT", "my-project") for line in lines}
    file = tmp_path / "commands.json"
    file.write_text(json.dumps([{"command_string": line} for line in sorted(lines)]))
    command = ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={file}"]
    try:
        shown = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("wants gcloud, with its linter")
    verdicts = json.loads(shown)
    assert len(verdicts) == len(lines)
    errors = [verdict["error_message"] for verdict in verdicts if not verdict["success"]]
    assert not errors


def test_launchers_are_called_as_they_take_it():
    called = set()
    for path in DOCS:
        for words in commands(path):
            words = [
                *itertools.dropwhile(lambda word: re.match(r"\w+=", word), words)
            ]  # environment
            if words and words[0] in ("launch/run.sh", "launch/tpu_vm.sh"):
                called.add(words[0])
                subprocess.run(
                    [*words[:2], "--dry_run", *words[2:]], cwd=ROOT, check=True, capture_output=True
                )
    assert called == {"launch/run.sh", "launch/tpu_vm.sh"}
