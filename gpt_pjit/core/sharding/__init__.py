"""Partitioning as data: a table of `(regex, spec)` rules, four layouts, a named mesh.

Pure: no files, no flags, no compile. `place` turns a table and a tree of shapes into the specs of
the stored parameters, the weights in the passes, the gradients and the optimizer state.
"""

from gpt_pjit.core.sharding.layouts import BATCH, LAYOUTS, ROLES, axes_of, axis_sizes_of, keep
from gpt_pjit.core.sharding.mesh import (
    AXES,
    BATCH_AXES,
    REPLICA,
    abstract_mesh,
    device_kind,
    make_mesh,
    mesh_shape,
)
from gpt_pjit.core.sharding.optimizer_state import optimizer_specs, state_parameters, state_shapes
from gpt_pjit.core.sharding.placement import (
    SCANNED,
    Placement,
    choose,
    is_array,
    misfits,
    over_batch_axes,
    place,
    shard_bytes,
    shard_shape,
    shardings,
    without_batch_axes,
)
from gpt_pjit.core.sharding.rules import (
    NO_RULE,
    SHARDING,
    Finding,
    Match,
    Rules,
    match_rules,
    path_string,
    paths_and_leaves,
    searched,
    try_rules,
    values,
    whole_path_regex,
)
