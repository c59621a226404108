"""The GPT and its loss, pure functions of a tree of parameters; `Model` puts it on a mesh."""

from gpt_pjit.core.model.attention import (
    QUERY_BLOCK as QUERY_BLOCK,
    attend_causally as attend_causally,
    by_group as by_group,
    contract_groups as contract_groups,
)
from gpt_pjit.core.model.gpt import (
    KeysAndValues as KeysAndValues,
    count_params as count_params,
    forward as forward,
    init_params as init_params,
    open_block as open_block,
    open_ends as open_ends,
    param_shapes as param_shapes,
    scan_layers as scan_layers,
)
from gpt_pjit.core.model.loss import (
    token_nll as token_nll,
)
from gpt_pjit.core.model.model import (
    Model as Model,
    build_model as build_model,
    sharding_rules as sharding_rules,
)
from gpt_pjit.core.model.positions import (
    alibi_slopes as alibi_slopes,
    rotary_frequencies as rotary_frequencies,
    rotation as rotation,
)
