"""Partitioning for people: the engine of `core/sharding`, explained, linted, compared and locked.

The names of this page are a library for any JAX model: they cost jax and the standard library.
What belongs to our configs and to the command line, `gpt_pjit partition`, is imported when it is
first asked for. docs/partitioning.md and docs/your_model.md show the library in use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.sharding import (
    LAYOUTS,
    ROLES,
    Finding,
    Placement,
    match_rules,
    optimizer_specs,
    place,
    searched,
    shardings,
    values,
)
from gpt_pjit.partition.explain import COLLECTIVES, DEAL, TREES, explain, placement_of
from gpt_pjit.partition.lint import lint, why

if TYPE_CHECKING:
    from gpt_pjit.core.parameters import gpt_rules
    from gpt_pjit.partition.configs import explain_config
    from gpt_pjit.partition.views import mesh_text, parts_of_devices

_OF_TOOLS = {
    "gpt_rules": "gpt_pjit.core.parameters",
    "explain_config": "gpt_pjit.partition.configs",
    "mesh_text": "gpt_pjit.partition.views",
    "parts_of_devices": "gpt_pjit.partition.views",
}


def __getattr__(name: str) -> Any:
    if name not in _OF_TOOLS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_OF_TOOLS[name]), name)
