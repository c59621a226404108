"""Partitioning for people: the engine of `core/sharding`, explained, linted, compared and locked.

`gpt_pjit partition` is the command line; docs/partitioning.md shows the names for library use.
"""

from gpt_pjit.core.parameters import gpt_rules as gpt_rules
from gpt_pjit.core.sharding import (
    match_rules as match_rules,
    optimizer_specs as optimizer_specs,
    place as place,
    values as values,
)
from gpt_pjit.partition.explain import (
    COLLECTIVES as COLLECTIVES,
    DEAL as DEAL,
    TREES as TREES,
    explain_config as explain_config,
    placement_of as placement_of,
)
from gpt_pjit.partition.lint import lint as lint, why as why
from gpt_pjit.partition.views import mesh_text as mesh_text, parts_of_devices as parts_of_devices
