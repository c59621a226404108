"""The code and packages that compute a run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from pathlib import Path

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "gpt_pjit")
PACKAGE = Path(__file__).parents[2]


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
