"""Partitioning as data: a table of `(regex, spec)` rules, four layouts, a named mesh.

Pure: no files, no flags, no compile. `place` turns a table and a tree of shapes into the specs of
the stored parameters, the weights in the passes, the gradients and the optimizer state.
"""

from gpt_pjit.partition.layouts import LAYOUTS as LAYOUTS, Layout as Layout, axes_of as axes_of
from gpt_pjit.partition.mesh import (
    AXES as AXES,
    BATCH_AXES as BATCH_AXES,
    make_mesh as make_mesh,
    mesh_shape as mesh_shape,
)
from gpt_pjit.partition.placement import (
    Placement as Placement,
    optimizer_specs as optimizer_specs,
    over_batch_axes as over_batch_axes,
    place as place,
    shard_bytes as shard_bytes,
    without_batch_axes as without_batch_axes,
)
from gpt_pjit.partition.rules import (
    Match as Match,
    match_rules as match_rules,
    path_string as path_string,
    paths_and_leaves as paths_and_leaves,
    values as values,
)
from gpt_pjit.partition.tables import gpt_rules as gpt_rules, matrix_rules as matrix_rules
