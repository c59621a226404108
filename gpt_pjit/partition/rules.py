"""The rule engine: `(regex, value)` rows over the paths of a tree; full match, first match wins.

One engine serves sharding tables, weight-decay masks, and whatever else is a value per parameter.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from gpt_pjit.errors import ConfigError, Problem

Rules = Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class Match:
    """The rule that a path matched: its number in the table, its regex and its value."""

    number: int
    regex: str
    value: Any


def path_string(key_path: tuple[Any, ...]) -> str:
    """A JAX key path as rules see it: `blocks/mlp/up/kernel`."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def paths_and_leaves(tree: Any) -> list[tuple[str, Any]]:
    return [(path_string(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def match_rules(rules: Rules, tree: Any, source: str = "partition.rules") -> Any:
    """A tree like `tree` with the `Match` of each leaf.

    Raises ConfigError with every leaf that no rule matches, every rule that matches no leaf, and
    every rule whose leaves are all taken by earlier rules: a table has no row without an effect.
    """
    patterns = _compile(rules, source)
    paths = [path for path, _ in paths_and_leaves(tree)]
    candidates = {path: [i for i, p in enumerate(patterns) if p.fullmatch(path)] for path in paths}
    problems = [
        Problem(path, None, f"matched by none of the {len(rules)} rules", "add a rule for it")
        for path in paths
        if not candidates[path]
    ]
    for number, (regex, _) in enumerate(rules):
        wanted = [path for path in paths if number in candidates[path]]
        taken_by = sorted({candidates[path][0] for path in wanted})
        if not wanted:
            remedy = "remove it, or correct its regex (it must match the whole path)"
            problems.append(Problem(f"rule {number}", regex, "matches no parameter", remedy))
        elif number not in taken_by:
            earlier = ", ".join(f"rule {i} {rules[i][0]!r}" for i in taken_by)
            constraint = f"everything it matches ({', '.join(wanted)}) is taken by {earlier}"
            problems.append(
                Problem(f"rule {number}", regex, constraint, "move it up, or remove it")
            )
    if problems:
        raise ConfigError(problems, source)

    def match(key_path: tuple[Any, ...], _: Any) -> Match:
        number = candidates[path_string(key_path)][0]
        return Match(number, *rules[number])

    return jax.tree_util.tree_map_with_path(match, tree)


def values(matches: Any) -> Any:
    """The tree of the matched rules' values."""
    return jax.tree.map(lambda m: m.value, matches, is_leaf=lambda m: isinstance(m, Match))


def _compile(rules: Rules, source: str) -> list[re.Pattern[str]]:
    patterns, problems = [], []
    for number, row in enumerate(rules):
        try:
            regex, _ = row
            patterns.append(re.compile(regex))
        except re.error as error:
            problems.append(Problem(f"rule {number}", regex, f"is no regex: {error}", "correct it"))
        except (TypeError, ValueError):
            problems.append(
                Problem(f"rule {number}", row, "is no (regex, value) pair", "write one")
            )
    if problems:
        raise ConfigError(problems, source)
    return patterns
