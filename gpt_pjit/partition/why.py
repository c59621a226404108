"""For one parameter, what each rule of the table has to say to it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.core.sharding import (
    SHARDING,
    Match,
    Rules,
    choose,
    misfits,
    paths_and_leaves,
    try_rules,
    whole_path_regex,
)


@dataclass(frozen=True)
class Trial:
    """A rule tried on the parameter: `taken`, `too late`, `near miss` or `no match`, and why."""

    number: int
    regex: str
    verdict: str
    reason: str


def why(rules: Rules, params: Any, path: str, axis_sizes: Mapping[str, int]) -> list[Trial]:
    """Every rule in order, tried on the parameter at `path`; the table may be wrong elsewhere."""
    leaves = dict(paths_and_leaves(params))
    if path not in leaves:
        close = difflib.get_close_matches(path, leaves, n=3, cutoff=0.4)
        remedy = f"did you mean {' or '.join(close)}?" if close else "explain lists all paths"
        raise ConfigError([Problem("path", path, "is no parameter", remedy)], "--why")
    matches, findings = try_rules(rules, [path])
    if malformed := [finding for finding in findings if finding.kind == "malformed"]:
        raise ConfigError(malformed, SHARDING)
    taken = matches.get(path)
    trials = []
    for number, (regex, *_) in enumerate(rules):
        verdict, reason = "no match", ""
        if taken and number == taken.number:
            verdict, reason = "taken", _choice(rules, taken, path, leaves[path], axis_sizes)
        elif re.fullmatch(regex, path):
            assert taken
            verdict, reason = "too late", f"matches, but rule {taken.number} comes first"
        elif wider := whole_path_regex(regex, path):
            verdict, reason = "near miss", f"matches a part of the path only; all of it: {wider}"
        trials.append(Trial(number, regex, verdict, reason))
    return trials


def _choice(rules: Rules, match: Match, path: str, leaf: Any, axis_sizes: Mapping[str, int]) -> str:
    """Which spec of the rule holds, and why not the ones before it."""
    chosen, findings = choose(rules, {path: leaf}, axis_sizes)
    if path not in chosen:
        return "; ".join(str(finding) for finding in findings if finding.parameter == path)
    value = chosen[path].value
    if len(match.values) == 1:
        return f"the first that matches all of the path: {value}"
    refused = misfits(path, match, leaf.shape, axis_sizes)[: chosen[path].chosen]
    reasons = "".join(f"; not {match.values[i]}: {r[0].constraint}" for i, r in enumerate(refused))
    return f"spec {chosen[path].chosen + 1} of {len(match.values)}, {value}{reasons}"
