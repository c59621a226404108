"""The GPT and its loss, pure functions of a tree of parameters; `Model` puts it on a mesh."""

from gpt_pjit.core.model.attention import QUERY_BLOCK as QUERY_BLOCK
from gpt_pjit.core.model.cache import (
    EMPTY as EMPTY,
    Cache as Cache,
    extend as extend,
    with_slots as with_slots,
)
from gpt_pjit.core.model.gpt import (
    count_params as count_params,
    forward as forward,
    init_params as init_params,
    param_shapes as param_shapes,
)
from gpt_pjit.core.model.layers import NORM_EPSILON as NORM_EPSILON
from gpt_pjit.core.model.loss import token_nll as token_nll
from gpt_pjit.core.model.model import (
    Model as Model,
    build_model as build_model,
    sharding_rules as sharding_rules,
)
