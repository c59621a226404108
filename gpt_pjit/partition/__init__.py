"""Partitioning for people: the engine of `core/sharding`, explained, linted, compared, locked.

`python -m gpt_pjit.partition` is the command line.
"""

from gpt_pjit.core.sharding import (
    AXES as AXES,
    LAYOUTS as LAYOUTS,
    Finding as Finding,
    Layout as Layout,
    Match as Match,
    Placement as Placement,
    Rules as Rules,
    abstract_mesh as abstract_mesh,
    gpt_rules as gpt_rules,
    make_mesh as make_mesh,
    match_rules as match_rules,
    matrix_rules as matrix_rules,
    mesh_shape as mesh_shape,
    optimizer_specs as optimizer_specs,
    place as place,
    values as values,
)
from gpt_pjit.partition.diff import Difference as Difference, diff as diff
from gpt_pjit.partition.explain import (
    TREES as TREES,
    Explanation as Explanation,
    explain as explain,
)
from gpt_pjit.partition.gpt import explain_config as explain_config
from gpt_pjit.partition.html_assets import HEAD as HEAD, STYLE as STYLE
from gpt_pjit.partition.lint import lint as lint
from gpt_pjit.partition.render import text_table as text_table
from gpt_pjit.partition.text import human_bytes as human_bytes, mesh_text as mesh_text
from gpt_pjit.partition.traffic import COLLECTIVES as COLLECTIVES
from gpt_pjit.partition.why import Trial as Trial, why as why
