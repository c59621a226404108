"""The recipes of docs/your_model.md, as written, on 8 devices of their own process."""

import importlib.util
import re
import sys

import pytest

from tests.helpers import ROOT
from tests.processes import run

PAGE = (ROOT / "docs" / "your_model.md").read_text()
RECIPES = re.findall(r"^## (.+?)\n.*?```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.M | re.S)
IDIOM = """
import math, re
from gpt_pjit.core.sharding import axes_of, is_array, paths_and_leaves, shard_bytes
from jax.sharding import PartitionSpec

def parts(path, leaf):
    found = rows if hasattr(table, "items") else table
    match = re.fullmatch if hasattr(table, "items") else re.search
    spec = next((spec for regex, spec in found if match(regex, path)), ())
    spec = spec if math.prod(leaf.shape) > 1 else ()
    return shard_bytes(leaf, PartitionSpec(*spec), dict(getattr(mesh, "shape", mesh)))

arrays = [(path, leaf) for path, leaf in paths_and_leaves(shapes) if is_array(leaf)]
held = explain(placement, shapes)["bytes_a_device"]["stored"]
print("IDIOM", f"{sum(parts(*one) for one in arrays):,} | {held:,}")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("title", "code", "printed"), RECIPES, ids=[title for title, *_ in RECIPES]
)
def test_a_recipe_prints_what_the_page_says(title, code, printed, tmp_path):
    for package in re.findall(r"^(?:import|from) (equinox|keras|flax)", code, re.M):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: it is in none of our extras")
    result = run([sys.executable, "-c", code + IDIOM], devices=8, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    said, _, idiom = result.stdout.partition("IDIOM ")
    assert said == printed
    (row,) = re.findall(rf"^\| {title} \|.*\|$", PAGE, re.M)
    assert row.endswith(f" | {idiom.strip()} |")


def test_the_page_has_four_recipes():
    assert [title for title, *_ in RECIPES] == ["Linen", "nnx", "Equinox", "Keras 3 on JAX"]
