"""The code and packages that compute a run."""

import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "gpt_pjit")
PACKAGE = Path(__file__).parents[2]
SETTINGS = ("JAX_", "XLA_", "LIBTPU_INIT_ARGS")  # how variables begin that may change a program


def this_start() -> dict[str, Any]:
    """When, by which command and code, with which packages and settings, on which devices."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([sys.executable, *sys.orig_argv[1:]]),
        "git": _git_state(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(SETTINGS)},
        "processes": jax.process_count(),
        "devices": [jax.device_count(), jax.devices()[0].device_kind],
    }


def code_facts() -> dict[str, str]:
    """What must be the same on all hosts: Python, packages, and a hash of our own sources."""
    sources = sorted(PACKAGE.rglob("*.py"))
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()
    versions = {f"package {name}": version for name, version in package_versions().items()}
    return {"python": platform.python_version(), **versions, "sources of gpt_pjit": digest[:16]}


def package_versions() -> dict[str, str]:
    """The version of each package, or that it is not installed, as in a bare checkout."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _git_state() -> dict[str, Any] | None:
    """The commit of this source tree and whether it was clean; None outside a git checkout."""

    def git(*words: str) -> str:
        command = ("git", "-C", str(Path(__file__).parent), *words)
        return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True).strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "clean": not git("status", "--porcelain")}
    except (OSError, subprocess.CalledProcessError):
        return None
