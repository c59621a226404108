"""The rule engine: `(regex, value)` rows over the paths of a tree; full match, first match wins.

One engine serves sharding tables, weight-decay and learning-rate tables, dimension letters, and any
other value per parameter.
"""

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from gpt_pjit.core.errors import ConfigError, Problem

Rules = Sequence[tuple[Any, ...]]
SHARDING = "partition.rules"  # the default name of a table
NO_RULE = -1  # the number of the match of a leaf of one element that no rule matches


@dataclass(frozen=True)
class Match:
    """The rule that a path matched: its number in the table, its regex and its values.

    Several values are alternatives in order of preference; `chosen` is the one in use.
    """

    number: int
    regex: str
    values: tuple[Any, ...]
    chosen: int = 0

    @property
    def value(self) -> Any:
        return self.values[self.chosen]

    def __str__(self) -> str:
        return "no rule" if self.number == NO_RULE else f"rule {self.number} {self.regex!r}"


@dataclass(frozen=True)
class Finding(Problem):
    """A problem of a table, with the kind of mistake, the parameter and the rule it is about."""

    kind: str = ""
    parameter: str = ""
    rule: int | None = None
    table: str = SHARDING
    severity: str = "error"


def path_string(key_path: tuple[Any, ...]) -> str:
    """A JAX key path as rules see it: `blocks/mlp/up/kernel`."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def paths_and_leaves(tree: Any) -> list[tuple[str, Any]]:
    return [(path_string(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def match_rules(rules: Rules, tree: Any, source: str = SHARDING) -> Any:
    """A tree like `tree` with the `Match` of each leaf.

    Raises ConfigError with every leaf that no rule matches, every rule that matches no leaf, and
    every rule whose leaves all go to earlier rules: every row of a table must have an effect.
    """
    matches, findings = try_rules(rules, [path for path, _ in paths_and_leaves(tree)], source)
    if findings:
        raise ConfigError(findings, source)
    return jax.tree_util.tree_map_with_path(lambda path, _: matches[path_string(path)], tree)


def values(matches: Any) -> Any:
    """The tree of the matched rules' values, for a table without alternatives."""

    def only(match: Match) -> Any:
        assert len(match.values) == 1, match
        return match.value

    return jax.tree.map(only, matches, is_leaf=lambda m: isinstance(m, Match))


def searched(table: Any) -> Rules:
    """A table of the field as rules: a regex matches if it is *found in* the path.

    Args:
      table: `(regex, spec)` rows. A regex may be a tuple of them, for consecutive parts of a path.
        A spec is a PartitionSpec or a tuple, which may be shorter than a shape, or None.

    Returns:
      Rows with the same effect for `lint` and `place`: the first that is found wins, and dimensions
      beyond a spec are whole.

    >>> searched([("attention/(query|key)", P("fsdp", "tp")), (".*", P())])
    (('.*(?:attention/(query|key)).*', ('fsdp', 'tp', Ellipsis)), ('.*(?:.*).*', (Ellipsis,)))
    """

    def spec(value: Any) -> Any:
        return (*(value or ()), ...) if isinstance(value, P | tuple | None) else value

    def regex(value: Any) -> Any:
        if isinstance(value, tuple):
            return "(?:.*/)?" + "/".join(f"(?:{part})" for part in value) + "(?:/.*)?"
        return f".*(?:{value}).*" if isinstance(value, str) else value

    return tuple(
        (regex(row[0]), *map(spec, row[1:])) if isinstance(row, tuple | list) and row else row
        for row in table
    )


def try_rules(
    rules: Rules, paths: Sequence[str], source: str = SHARDING
) -> tuple[dict[str, Match], list[Finding]]:
    """The matches of all paths that have one, and all problems with the table's coverage."""
    patterns, found = _compile(rules)
    candidates: dict[str, list[int]] = {}
    if not found:
        for path in paths:
            candidates[path] = [i for i, p in enumerate(patterns) if p.fullmatch(path)]
        found = [*_twice(paths), *_coverage(rules, candidates)]
    matches = {
        path: Match(numbers[0], rules[numbers[0]][0], tuple(rules[numbers[0]][1:]))
        for path, numbers in candidates.items()
        if numbers
    }
    return matches, [replace(finding, table=source) for finding in found]


def whole_path_regex(regex: str, path: str) -> str | None:
    """`regex` widened to match all of `path`, or None if it does not occur in it."""
    inner = f"(?:{regex})" if "|" in regex else regex
    widened = (f".*{inner}", f"{inner}.*", f".*{inner}.*") if re.search(regex, path) else ()
    return next((wider for wider in widened if re.fullmatch(wider, path)), None)


def _twice(paths: Sequence[str]) -> Iterator[Finding]:
    """Keys with a slash in them can give two leaves the same path."""
    for path, count in Counter(paths).items():
        if count > 1:
            constraint = f"is the path of {count} leaves"
            yield Finding("parameter", path, constraint, "rename one", "ambiguous", path)


def _coverage(rules: Rules, candidates: Mapping[str, list[int]]) -> Iterator[Finding]:
    """Leaves without a rule, rules without a leaf; `candidates` has all rules of each path."""
    paths = list(candidates)
    for path in paths:
        if not candidates[path]:
            remedy = _remedy_for_path(rules, path)
            yield Finding("parameter", path, "no rule matches it", remedy, "unmatched", path)
    for number, (regex, *_) in enumerate(rules):
        wanted = [path for path in paths if number in candidates[path]]
        taken_by = sorted({candidates[path][0] for path in wanted})
        if not wanted:
            remedy = _remedy_for_rule(regex, paths)
            yield _of_rule(number, regex, "matches no parameter", remedy, "dead")
        elif number not in taken_by:
            earlier = ", ".join(f"rule {i} {rules[i][0]!r}" for i in taken_by)
            constraint = f"everything it matches ({', '.join(wanted)}) is taken by {earlier}"
            yield _of_rule(
                number, regex, constraint, "move it up, or remove it", "shadowed", wanted[0]
            )


def _of_rule(
    number: int, value: Any, constraint: str, remedy: str, kind: str, parameter: str = ""
) -> Finding:
    where = f"rule {number}"
    return Finding(where, value, constraint, remedy, kind=kind, parameter=parameter, rule=number)


def _remedy_for_path(rules: Rules, path: str) -> str:
    for number, (regex, *_) in enumerate(rules):
        if wider := whole_path_regex(regex, path):
            return f"rule {number} {regex!r} matches a part of it: write {wider!r}, or add a rule"
    return f"add a rule for it: ({re.escape(path)!r}, VALUE)"


def _remedy_for_rule(regex: str, paths: Sequence[str]) -> str:
    for path in paths:
        if wider := whole_path_regex(regex, path):
            return f"it matches a part of {path}, but must match the whole: write {wider!r}"
    close = difflib.get_close_matches(regex, paths, n=1)
    return f"did you mean {close[0]}? Otherwise remove it" if close else "remove it, or correct it"


def _compile(rules: Rules) -> tuple[list[re.Pattern[str]], list[Finding]]:
    patterns, findings = [], []
    for number, row in enumerate(rules):
        if not (isinstance(row, tuple | list) and len(row) > 1 and isinstance(row[0], str)):
            constraint, remedy = "is not a (regex, value) row", "write a regex, then a value"
            findings.append(_of_rule(number, row, constraint, remedy, "malformed"))
            continue
        try:
            patterns.append(re.compile(row[0]))
        except re.error as error:
            constraint = f"is not a valid regex: {error}"
            findings.append(
                _of_rule(number, row[0], constraint, "correct or escape it", "malformed")
            )
    return patterns, findings
