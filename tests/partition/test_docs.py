"""What docs/partitioning.md shows works as shown."""

import re

import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from gpt_pjit.config import default_config, from_config_dict
from gpt_pjit.partition import explain_config
from tests.helpers import ROOT, load_config, with_fields
from tests.partition.mistakes import MISTAKES

PAGE = (ROOT / "docs" / "partitioning.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_has_every_mistake():
    for mistake in MISTAKES:
        assert f"| {mistake.name} | {mistake.kind} | {mistake.idiom} |\n" in PAGE


def test_the_tables_of_a_config():
    names: dict = {"c": default_config()}
    for code in CODE:
        if code.startswith(("from gpt_pjit.partition import gpt_rules", "c.")):
            exec(code, names)  # noqa: S102 - code of our own page
    config = from_config_dict(names["c"])
    fields = {
        "partition.rules": config.partition.rules,
        "optim.lr_rules": config.optim.lr_rules,
    }
    record = explain_config(with_fields(load_config("580m"), fields), 32)
    assert len(config.optim.lr_rules) == 3
    embed = record["parameters"]["embed/embedding"]
    assert embed["trees"]["stored"]["spec"] == [["tensor", "data"], None]


def test_the_library():
    names: dict = {"jnp": jnp, "optax": optax}
    for code in CODE:
        if code.startswith(("from gpt_pjit.partition import lint", "tx = ")):
            exec(code, names)  # noqa: S102 - code of our own page
    assert names["findings"] == []
    assert names["placement"].compute == {"encoder": [{"w": P(None, "tensor"), "b": P("tensor")}]}
    assert names["decayed"] == {"encoder": [{"w": True, "b": False}]}
    state = names["specs"][0]
    assert state.v_row["encoder"][0]["w"] == P("data")
    assert state.v_col["encoder"][0]["w"] == P(None)
