"""Partitioning as data: a table of `(regex, spec)` rules, four layouts, a named mesh.

Pure: no files, no flags, no compile. `place` turns a table and a tree of shapes into the specs of
the stored parameters, the weights in the passes, the gradients and the optimizer state; `explain`,
`why`, `lint` and `diff` say what that means. `python -m gpt_pjit.partition` is their command line.
"""

from gpt_pjit.partition.diff import Difference as Difference, diff as diff
from gpt_pjit.partition.explain import (
    TREES as TREES,
    Explanation as Explanation,
    explain as explain,
)
from gpt_pjit.partition.html_assets import HEAD as HEAD, STYLE as STYLE
from gpt_pjit.partition.layouts import LAYOUTS as LAYOUTS, Layout as Layout, axes_of as axes_of
from gpt_pjit.partition.lint import lint as lint
from gpt_pjit.partition.mesh import (
    AXES as AXES,
    BATCH_AXES as BATCH_AXES,
    abstract_mesh as abstract_mesh,
    make_mesh as make_mesh,
    mesh_shape as mesh_shape,
)
from gpt_pjit.partition.optimizer_state import (
    optimizer_specs as optimizer_specs,
    state_bytes as state_bytes,
)
from gpt_pjit.partition.placement import (
    SCANNED as SCANNED,
    Placement as Placement,
    over_batch_axes as over_batch_axes,
    place as place,
    shard_bytes as shard_bytes,
    shard_shape as shard_shape,
    without_batch_axes as without_batch_axes,
)
from gpt_pjit.partition.render import text_table as text_table
from gpt_pjit.partition.rules import (
    Finding as Finding,
    Match as Match,
    Rules as Rules,
    match_rules as match_rules,
    path_string as path_string,
    paths_and_leaves as paths_and_leaves,
    try_rules as try_rules,
    values as values,
)
from gpt_pjit.partition.tables import (
    gpt_dimensions as gpt_dimensions,
    gpt_rules as gpt_rules,
    matrix_rules as matrix_rules,
)
from gpt_pjit.partition.text import human_bytes as human_bytes, mesh_text as mesh_text
from gpt_pjit.partition.traffic import COLLECTIVES as COLLECTIVES
from gpt_pjit.partition.why import Trial as Trial, why as why
