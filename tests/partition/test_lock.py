"""The committed locks, and records in files."""

import json

import pytest

from gpt_pjit.config import ModelConfig
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.parameters import gpt_rules
from gpt_pjit.core.sharding import LAYOUTS
from gpt_pjit.pages import compare, read_record, write_record
from gpt_pjit.partition import explain_config, placement_of
from gpt_pjit.partition.command import lock_name
from tests.helpers import ROOT, load_config, tiny, with_fields


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_committed_locks_hold(layout):
    config = with_fields(load_config("580m"), {"partition.layout": layout})
    now = explain_config(config, 32)
    locked = read_record(ROOT / "configs" / "locks" / lock_name("580m", now), ("parameters",))
    command = "gpt_pjit partition lock --config=configs/580m.py --devices=32"
    override = f"--config.partition.layout={layout}"
    changes = compare(placement_of(locked), placement_of(now))
    assert changes == [], f"see {command} {override}; accept with --write"


def test_a_record_is_read_as_it_was_written(tmp_path):
    rules = (("embed/embedding", (("tensor", "data"), None)),)
    config = tiny(mesh={"replica": 2, "tensor": 2})
    rules += tuple(gpt_rules(ModelConfig())[1:])
    now = explain_config(with_fields(config, {"partition.rules": rules}), 8)
    write_record(tmp_path / "locks" / "a.json", now)
    read = read_record(tmp_path / "locks" / "a.json", ("parameters",))
    assert read == now == json.loads(json.dumps(now))
    assert lock_name("mine", now) == "mine.replica2-data2-tensor2.zero.json"


def test_another_regex_with_the_same_effect_is_the_same_placement():
    config = tiny()
    row, *others = gpt_rules(ModelConfig())
    rules = (("embed/embeddin[g]", *row[1:]), *others)
    before, after = (
        explain_config(with_fields(config, {"partition.rules": r}), 8) for r in ((), rules)
    )
    assert compare(before, after) != []
    assert compare(placement_of(before), placement_of(after)) == []


@pytest.mark.parametrize("text", ["{", "", "[]", "3", '{"layout": "zero"}', "\xff"])
def test_what_is_not_a_record(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"not a record: .*; write it again with --write"):
        read_record(path, ("layout", "mesh"))
