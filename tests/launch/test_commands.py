"""Commands in the docs: those of others as they document them, ours with a dry run."""

import json
import re
import shlex
import shutil
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


def test_gcloud_itself_accepts_them(tmp_path):
    """A second opinion, where gcloud is installed: its linter, which sends nothing."""
    if not shutil.which("gcloud"):
        pytest.skip("wants gcloud")
    lines = {shlex.join(words) for words in foreign() if words[0] == "gcloud"}
    for line in sorted(lines):
        result = subprocess.run(
            ["gcloud", "meta", "lint-gcloud-commands", f"--command-string={line}"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        (verdict,) = json.loads(result.stdout)
        assert verdict["success"], (line, verdict["error_message"])


def test_launchers_are_called_as_they_take_it():
    found = [words for path in DOCS for words in commands(path) if words and "launch/" in words[0]]
    found = [words for words in found if words[0] != "launch/local.sh"]  # it asks the compiler
    assert {words[0] for words in found} == {"launch/run.sh", "launch/tpu_vm.sh"}
    for words in found:
        subprocess.run([*words[:2], "--dry_run", *words[2:]], cwd=ROOT, check=True)
