"""The tables of CompleteP for a model twice as wide and three times as deep."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from gpt_pjit.config import default_config, from_config_dict
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.model import init_params, param_shapes
from gpt_pjit.core.scaling import scale_from
from gpt_pjit.core.sharding import paths_and_leaves
from gpt_pjit.core.training import make_optimizer, optimizer_findings
from gpt_pjit.core.validation import validate
from tests.helpers import BLOCKS, load_config, tiny


def scaled(width=128, layers=6, **fields):
    c = default_config()
    sizes = {"n_layers": layers, "n_heads": 4, "d_model": width, "d_ff": 4 * width}
    c.model.update(sizes | {"bias": "all", "tied": False} | fields)
    c.data.path = "none"
    scale_from(c, width=64, layers=2, head_size=16)
    return from_config_dict(c)


def test_every_row_is_completeps():
    c = scaled()
    rows = zip(c.model.init_rules, c.optim.lr_rules, c.optim.decay_rules, strict=True)
    found = {init[0]: (init[1], rate[1], decay[1]) for init, rate, decay in rows}
    assert found["blocks/mlp/up/kernel"] == (pytest.approx(0.5**0.5), 0.5, 2)
    assert found["blocks/mlp/down/kernel"] == (pytest.approx(1.5**0.5), 0.5, 2)
    assert found["embed/embedding"] == found["head/kernel"] == (1, 1, 1)
    assert found["blocks/mlp/(up|gate)/bias"] == found["norm_final/scale"] == (1, 1, 0)
    assert c.model.attention_scale == pytest.approx(16**0.5 / 32)
    assert (c.model.logit_factor, c.model.residual_factor) == (1 / 2, 1 / 3)


@pytest.mark.parametrize("block", BLOCKS)
def test_the_tables_fit_every_block_and_change_nothing_at_the_tuned_sizes(block):
    fields = {"bias": "none", "d_ff": 128} | BLOCKS[block]
    c = scaled(64, 2, **fields | {"n_layers": 2, "head_size": 16})
    validate(c)
    assert not optimizer_findings(c, param_shapes(c.model, 32))
    factors = {row[1] for table in (c.model.init_rules, c.optim.lr_rules) for row in table}
    assert factors == {1.0}
    assert c.model.logit_factor == c.model.residual_factor == 1
    assert c.model.attention_scale * 16**0.5 == 1


def test_initial_values_are_multiplied():
    c = scaled().model
    key = jax.random.key(0)
    found, plain = (
        dict(paths_and_leaves(init_params(model, 32, key)))
        for model in (c, replace(c, init_rules=()))
    )
    for path, values in found.items():
        factor = 1.0
        if path.startswith("blocks/") and path.endswith("kernel"):
            factor = (1.5 if "/out/" in path or "/down/" in path else 0.5) ** 0.5
        np.testing.assert_allclose(values, factor * plain[path], rtol=1e-6)


def test_a_table_with_gaps_and_a_factor_that_is_none_are_refused():
    with pytest.raises(ConfigError, match="init_rules has"):
        param_shapes(tiny(model={"init_rules": (("blocks/.*", 1.0),)}).model, 32)
    for wrong in ((".*", -1.0), (".*", "x"), (".*",), (".*", 1.0, 2.0)):
        with pytest.raises(ConfigError, match="must be pairs of a regex and a factor"):
            validate(tiny(model={"init_rules": (wrong,)}))
    for field in ("logit_factor", "residual_factor"):
        with pytest.raises(ConfigError, match=f"model.{field}=0.0: must be above 0"):
            validate(tiny(model={field: 0.0}))


def test_the_recipe_is_scaled():
    c = load_config("mup")
    assert c.model.logit_factor == 1
    make_optimizer(c, param_shapes(c.model, 32))
