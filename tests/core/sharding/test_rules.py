import jax
import numpy as np
import pytest

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.sharding import match_rules, path_string, paths_and_leaves, values

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
    with pytest.raises(ConfigError, match="parameter='blocks/up/kernel': no rule matches it"):
        match_rules(((".*embedding", 1),), TREE)


def test_all_unmatched_dead_and_shadowed_are_named_at_once():
    rules = (("embed/.*", 1), ("embed/embedding", 2), ("typo/.*", 3))
    with pytest.raises(ConfigError) as error:
        match_rules(rules, TREE)
    message = str(error.value)
    assert "3 problems" in message
    assert "blocks/up/kernel" in message
    assert "rule 2='typo/.*': matches no parameter; remove it, or correct it" in message
    assert (
        "rule 1='embed/embedding': everything it matches (embed/embedding) is taken by rule 0"
        in message
    )


@pytest.mark.parametrize("row", [("blocks/(", 1), ("blocks",), (), "ab", 7, (7, 1)], ids=repr)
def test_rows_that_are_no_rules(row):
    with pytest.raises(ConfigError, match="rule 0"):
        match_rules((row,), TREE)


def test_a_regex_that_matches_a_part_is_offered_widened():
    with pytest.raises(ConfigError) as error:
        match_rules((("up|down", 1), ("embed/", 2)), TREE)
    message = str(error.value)
    assert "rule 0 'up|down' matches a part of it: write '.*(?:up|down).*'" in message
    assert "it matches a part of embed/embedding, but must match the whole: write 'embed/.*'" in (
        message
    )


def test_two_leaves_with_one_path_are_refused():
    with pytest.raises(ConfigError, match="parameter='a/b': is the path of 2 leaves; rename one"):
        match_rules(((".*", 1),), {"a/b": np.zeros(1), "a": {"b": np.zeros(2)}})


def test_a_row_may_have_alternatives():
    match = match_rules((("blocks/.*", 1), ("embed/.*", 2, 3)), TREE)["embed"]["embedding"]
    assert (match.values, match.value, str(match)) == ((2, 3), 2, "rule 1 'embed/.*'")
