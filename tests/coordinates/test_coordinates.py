"""With the tables activations change alike at every width; without them they do not."""

import json

import pytest

from gpt_pjit.config import default_config, from_config_dict, replaced
from gpt_pjit.coordinates.check import FLAT, WITHOUT, measure, slopes
from gpt_pjit.coordinates.command import blocks
from gpt_pjit.core.scaling import scale_from
from gpt_pjit.pages import page
from tests.helpers import run_command_here

WIDTHS = (64, 128, 256)
MUP = "configs/mup.py"


def config_of(width):
    """Two layers, of four heads at every width."""
    c = default_config()
    c.model.update(n_layers=2, d_model=width, d_ff=4 * width, positions="rope", tied=False)
    c.data.path = "none"
    c.optim.peak_lr = 2.0**-7
    scale_from(c, width=WIDTHS[0], layers=2, head_size=16)
    return from_config_dict(c)


@pytest.mark.slow
@pytest.mark.long
def test_flat_with_the_tables_and_not_without(tmp_path):
    configs = {width: config_of(width) for width in WIDTHS}
    found = {
        side: {width: measure(replaced(c, fields), 5) for width, c in configs.items()}
        for side, fields in {"with": {}, "without": WITHOUT}.items()
    }
    flat, steep = slopes(found["with"]), slopes(found["without"])
    assert all(abs(slope) < FLAT for slope in flat.values()), flat
    del steep["embedding"]  # whose rate is the same in both
    assert all(slope > FLAT for slope in steep.values()), steep
    assert all(slope > 2 * FLAT for kind, slope in steep.items() if "block" in kind), steep
    # At the width of the tuned model, the tables change nothing.
    assert found["with"][64] == pytest.approx(found["without"][64], rel=1e-3)
    record = found | {"steps": 5, "slopes": {"with": flat, "without": steep}, "flat": True}
    assert page("by width", blocks(record)).count("<svg") == 2


@pytest.mark.slow
@pytest.mark.long
def test_the_command_reads_a_config_at_each_width(capsys, tmp_path):
    small = ["--config.model.n_layers=2", "--config.model.n_heads=2", "--widths=32,64", "--steps=1"]
    code, out, _ = run_command_here(capsys, "coordinates", f"--config={MUP}", *small, "--json")
    record = json.loads(out)
    assert code == (0 if record["flat"] else 1)
    assert record["with"].keys() == {"32", "64"}
    assert list(record["slopes"]["with"]) == ["embedding", "block 1", "block 2", "logits"]


def test_mistakes_are_one_message(capsys):
    code, _, err = run_command_here(capsys, "coordinates", f"--config={MUP}", "--widths=64")
    assert (code, "two widths" in err) == (78, True)
    code, _, err = run_command_here(capsys, "coordinates", f"--config={MUP}", "--widths=64,x")
    assert (code, "'x' is not a positive integer" in err) == (78, True)
    code, _, err = run_command_here(capsys, "coordinates", "--config=configs/124m.py")
    assert (code, "get_config() takes 0" in err) == (78, True)
