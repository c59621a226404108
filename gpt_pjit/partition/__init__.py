"""Partitioning for people: the engine of `core/sharding`, explained, linted, compared and locked.

`gpt_pjit partition` is the command line; the engine's own names are exported for library use.
"""

from gpt_pjit.core.parameters import gpt_rules as gpt_rules, matrix_rules as matrix_rules
from gpt_pjit.core.sharding import (
    AXES as AXES,
    LAYOUTS as LAYOUTS,
    Finding as Finding,
    Layout as Layout,
    Match as Match,
    Placement as Placement,
    Rules as Rules,
    abstract_mesh as abstract_mesh,
    make_mesh as make_mesh,
    match_rules as match_rules,
    mesh_shape as mesh_shape,
    optimizer_specs as optimizer_specs,
    place as place,
    values as values,
)
from gpt_pjit.partition.explain import (
    COLLECTIVES as COLLECTIVES,
    TREES as TREES,
    explain_config as explain_config,
    placement_of as placement_of,
)
from gpt_pjit.partition.lint import Trial as Trial, lint as lint, why as why
from gpt_pjit.partition.views import mesh_text as mesh_text, parts_of_devices as parts_of_devices
