"""The committed locks, and what happens when a placement is no longer what they hold."""

import pytest

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.sharding import LAYOUTS, gpt_rules
from gpt_pjit.partition import diff, explain_config
from gpt_pjit.partition.lock import lock_name, read_lock, write_lock
from tests.helpers import ROOT, load_config, tiny, with_fields


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_committed_locks_hold(layout):
    config = with_fields(load_config("580m"), {"partition.layout": layout})
    now = explain_config(config, 32)
    text = (ROOT / "configs" / "locks" / lock_name("580m", now)).read_text()
    command = "python -m gpt_pjit.partition lock --config=configs/580m.py --devices=32"
    override = f"--config.partition.layout={layout}"
    assert text == write_lock(now), f"see {command} {override}; accept with --write"


def test_a_lock_is_read_as_it_was_written():
    rules = (("embed/embedding", (("tensor", "data"), None)),)
    config = tiny(mesh={"replica": 2, "tensor": 2})
    rules += tuple(gpt_rules(bias=False, positions="alibi")[1:])
    now = explain_config(with_fields(config, {"partition.rules": rules}), 8)
    read = read_lock(write_lock(now), "x.lock")
    assert write_lock(read) == write_lock(now)
    assert diff(read, now).moves == ()
    assert lock_name("mine", now) == "mine.replica2-data2-tensor2.zero.lock"


@pytest.mark.parametrize(
    "text", ["{", "", "mesh = 1\nlayout = 'zero'\ncounters = 0\n[a]\nshape = 3"]
)
def test_what_is_no_lock(text):
    with pytest.raises(ConfigError, match="is no lock; write it anew with --write"):
        read_lock(text, "x.lock")
