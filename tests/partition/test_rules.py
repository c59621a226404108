import jax
import numpy as np
import pytest

from gpt_pjit.errors import ConfigError
from gpt_pjit.partition import match_rules, path_string, paths_and_leaves, values

TREE = {"embed": {"embedding": np.zeros(3)}, "blocks": {"up": {"kernel": np.zeros(4)}}}


def test_paths_are_joined_by_slashes():
    assert [path for path, _ in paths_and_leaves(TREE)] == ["blocks/up/kernel", "embed/embedding"]
    [(path, _), *_] = jax.tree_util.tree_leaves_with_path({"a": [1]})
    assert path_string(path) == "a/0"


def test_first_full_match_wins():
    rules = (("blocks/up/kernel", 1), (".*/(kernel|embedding)", 2))
    assert values(match_rules(rules, TREE)) == {
        "embed": {"embedding": 2},
        "blocks": {"up": {"kernel": 1}},
    }


def test_a_part_of_the_path_is_no_match():
    with pytest.raises(ConfigError, match=r"blocks/up/kernel=None: matched by none of the 1 rules"):
        match_rules(((".*embedding", 1),), TREE)


def test_all_unmatched_dead_and_shadowed_are_named_at_once():
    rules = (("embed/.*", 1), ("embed/embedding", 2), ("typo/.*", 3))
    with pytest.raises(ConfigError) as error:
        match_rules(rules, TREE)
    message = str(error.value)
    assert "3 problems" in message
    assert "blocks/up/kernel" in message
    assert "rule 2='typo/.*': matches no parameter" in message
    assert (
        "rule 1='embed/embedding': everything it matches (embed/embedding) is taken by rule 0"
        in message
    )


@pytest.mark.parametrize("row", [("blocks/(", 1), ("blocks",), 7])
def test_rows_that_are_no_rules(row):
    with pytest.raises(ConfigError, match="rule 0"):
        match_rules((row,), TREE)
