"""Partitioning as data: a table of `(regex, spec)` rules, four layouts, a named mesh.

Pure: no files, no flags, no compile. `place` turns a table and a tree of shapes into the specs of
the stored parameters, the weights in the passes, the gradients and the optimizer state.
"""

from gpt_pjit.core.sharding.layouts import (
    LAYOUTS as LAYOUTS,
    Layout as Layout,
    axes_of as axes_of,
    keep as keep,
)
from gpt_pjit.core.sharding.mesh import (
    AXES as AXES,
    BATCH_AXES as BATCH_AXES,
    REPLICA as REPLICA,
    abstract_mesh as abstract_mesh,
    make_mesh as make_mesh,
    mesh_shape as mesh_shape,
)
from gpt_pjit.core.sharding.optimizer_state import (
    optimizer_specs as optimizer_specs,
    state_parameters as state_parameters,
)
from gpt_pjit.core.sharding.placement import (
    SCANNED as SCANNED,
    Placement as Placement,
    choose as choose,
    misfits as misfits,
    over_batch_axes as over_batch_axes,
    place as place,
    shard_bytes as shard_bytes,
    shard_shape as shard_shape,
    without_batch_axes as without_batch_axes,
)
from gpt_pjit.core.sharding.rules import (
    SHARDING as SHARDING,
    Finding as Finding,
    Match as Match,
    Rules as Rules,
    match_rules as match_rules,
    path_string as path_string,
    paths_and_leaves as paths_and_leaves,
    try_rules as try_rules,
    values as values,
    whole_path_regex as whole_path_regex,
)
