"""The GPT and its loss, pure functions of a tree of parameters; `Model` puts it on a mesh."""

from gpt_pjit.core.model.attention import Heads, attend_causally
from gpt_pjit.core.model.blocks import (
    QUERY_BLOCK,
    by_group,
    contract_groups,
    heads_of,
    largest_scores,
)
from gpt_pjit.core.model.gpt import (
    KeysAndValues,
    count_params,
    forward,
    init_params,
    open_block,
    open_ends,
    param_shapes,
    scan_layers,
)
from gpt_pjit.core.model.loss import token_nll
from gpt_pjit.core.model.model import Model, build_model, sharding_rules
from gpt_pjit.core.model.positions import (
    alibi_slopes,
    rotary_frequencies,
    rotation,
    token_positions,
)
