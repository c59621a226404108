"""The plan that another git revision would make, by running it in a worktree of that revision."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt_pjit.core.errors import EXIT_BROKEN, EXIT_DONE, ConfigError, Problem


def record_at(revision: str | None, arguments: Sequence[str]) -> dict[str, Any]:
    """The --json of `python -m gpt_pjit.plan ARGUMENTS` at `revision`; None is what is here.

    Paths in the arguments are those of the revision too: its own configs are compared.
    """
    if revision is None:
        return _plan(Path.cwd(), arguments, "as it is here")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        added = _git("worktree", "add", "--detach", "--quiet", str(tree), revision)
        if added.returncode:
            reason = added.stderr.strip().splitlines()[-1]
            raise ConfigError([Problem("revision", revision, reason, "see `git log`")], "flags")
        try:
            return _plan(tree, arguments, revision)
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _plan(folder: Path, arguments: Sequence[str], name: str) -> dict[str, Any]:
    ran = subprocess.run(
        [sys.executable, "-m", "gpt_pjit.plan", *arguments, "--json"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    if ran.returncode not in (EXIT_DONE, EXIT_BROKEN) or not ran.stdout:
        reason = (ran.stderr.strip().splitlines() or ["it printed nothing"])[-1].strip()
        remedy = "the revision must have the plan room and this config"
        raise ConfigError([Problem("revision", name, reason, remedy)], "plan")
    return json.loads(ran.stdout)


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], capture_output=True, text=True)
