"""What is wrong or doubtful in a sharding table, and why a parameter got the rule it has."""

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from jax.sharding import PartitionSpec as P

from gpt_pjit.core.errors import ConfigError, Problem
from gpt_pjit.core.sharding import (
    NO_RULE,
    REPLICA,
    ROLES,
    SHARDING,
    Finding,
    Match,
    Rules,
    axes_of,
    axis_sizes_of,
    choose,
    is_array,
    misfits,
    paths_and_leaves,
    shard_shape,
    try_rules,
    whole_path_regex,
)

CATCH_ALL_BYTES = 2**20  # a catch-all may place this much, before splitting
REPLICATED_BYTES = 2**20  # a tensor of this size may be whole on every device
_warning = partial(Finding, severity="warning")


def lint(rules: Rules, params: Any, mesh: Any, roles: Mapping[str, str] = ROLES) -> list[Finding]:
    """What is wrong or doubtful in a table, on a tree and a mesh; arguments as of `place`.

    Returns findings of severity `error`, for which `place` refuses the table; then `warning`, with
    which it trains; then `note`, what is replicated though no row says so. Raises nothing.

    >>> import jax, jax.numpy as jnp
    >>> params = {"up": {"kernel": jax.ShapeDtypeStruct((512, 2048), jnp.float32)}}
    >>> (finding, *_) = lint((("up", ("fsdp", "tp")),), params, {"fsdp": 4, "tp": 2})
    >>> finding.severity, finding.kind, finding.parameter
    ('error', 'unmatched', 'up/kernel')
    >>> finding.remedy
    "rule 0 'up' matches a part of it: write 'up.*', or add a rule"
    """
    axis_sizes = axis_sizes_of(mesh)
    every = dict(paths_and_leaves(params))
    leaves = {path: leaf for path, leaf in every.items() if is_array(leaf)}
    chosen, errors = choose(rules, params, axis_sizes, roles)
    matches = try_rules(rules, list(leaves))[0]
    return [
        *errors,
        *_partial(matches, leaves),
        *_catch_alls(matches, leaves),
        *_unused_axes(matches | chosen, set(chosen), axis_sizes),
        *_replicated(chosen, leaves, axis_sizes),
        *_unsaid(every, chosen),
    ]


def is_catch_all(regex: str, path: str) -> bool:
    """Whether a rule that matches `path` would match any other name in its place.

    Such a rule silently takes the next parameter added there: `.*` or `blocks/.*` does, `.*/kernel`
    does not.
    """
    parent, slash, _ = path.rpartition("/")
    return bool(re.fullmatch(regex, f"{parent}{slash}any_other_name"))


def _catch_alls(matches: Mapping[str, Match], leaves: Mapping[str, Any]) -> Iterator[Finding]:
    for number, rule in sorted({match.number: match for match in matches.values()}.items()):
        taken = [path for path, match in matches.items() if match.number == number]
        size = sum(_bytes(leaves[path]) for path in taken)
        if size > CATCH_ALL_BYTES and is_catch_all(rule.regex, taken[0]):
            constraint = (
                f"is a catch-all of {len(taken)} parameters, {size:,} bytes: any other name "
                f"instead of {taken[0]} would match too"
            )
            remedy = f"name what it is for: {'|'.join(map(re.escape, taken))}"
            where = f"rule {number}"
            yield _warning(where, rule.regex, constraint, remedy, "catch-all", taken[0], number)


def _unused_axes(
    matches: Mapping[str, Match], chosen: set[str], axis_sizes: Mapping[str, int]
) -> Iterator[Finding]:
    """Axes that split no parameter; `replica` splits only the batch, by design."""
    used: set[str] = set()
    for path, match in matches.items():
        specs = [match.value] if path in chosen else match.values
        used.update(*(axes_of(P(*spec)) for spec in specs if isinstance(spec, tuple | P)))
    for axis, size in axis_sizes.items():
        if size > 1 and axis not in used and axis != REPLICA:
            constraint = "no rule splits anything over it: its devices hold the same parameters"
            remedy = f"name {axis!r} in a spec, or set mesh.{axis}=1"
            yield _warning(f"mesh.{axis}", size, constraint, remedy, "unused axis")


def _replicated(
    chosen: Mapping[str, Match], leaves: Mapping[str, Any], axis_sizes: Mapping[str, int]
) -> Iterator[Finding]:
    splitting = {axis: size for axis, size in axis_sizes.items() if size > 1 and axis != REPLICA}
    for path, match in chosen.items():
        shape = leaves[path].shape
        whole = shard_shape(shape, P(*match.value), axis_sizes) == shape
        if not splitting or not whole or _bytes(leaves[path]) <= REPLICATED_BYTES:
            continue
        constraint = f"whole on every device, {_bytes(leaves[path]):,} bytes, shape {shape}"
        fits = [
            tuple(axis if dim == here else None for here in range(len(shape)))
            for axis, size in splitting.items()
            for dim in range(len(shape))
            if shape[dim] % size == 0
        ]
        remedy = f"split it, for example {fits[-1]}" if fits else "no mesh axis divides it"
        where = f"{path} ({match})"
        yield _warning(where, match.value, constraint, remedy, "replicated", path, match.number)


def _partial(matches: Mapping[str, Match], leaves: Mapping[str, Any]) -> Iterator[Finding]:
    """Rows that name some dimensions from the left and leave the others to `...`."""
    cut: dict[int, list[str]] = {}
    for path, match in matches.items():
        leaf = leaves[path]
        for spec in match.values:
            ends = isinstance(spec, tuple) and spec[-1:] == (...,)
            if ends and any(spec[:-1]) and math.prod(leaf.shape) > 1 and len(spec) <= leaf.ndim:
                cut.setdefault(match.number, []).append(path)
    for number, paths in cut.items():
        path, match = paths[0], matches[paths[0]]
        shape = leaves[path].shape
        others = f"; {len(paths)} parameters in all" if paths[1:] else ""
        constraint = f"leaves dimensions of {path}, shape {shape}, unnamed{others}"
        remedy = "write an entry for each dimension, None for unsplit"
        where = f"rule {number}"
        yield _warning(where, match.values[0], constraint, remedy, "rank", path, number)


def _unsaid(every: Mapping[str, Any], chosen: Mapping[str, Match]) -> Iterator[Finding]:
    """What has no row, and needs none."""
    note = partial(Finding, severity="note")
    if paths := [path for path, leaf in every.items() if not is_array(leaf)]:
        constraint = f"these {len(paths)} are no arrays, and left alone"
        remedy = "pass only the arrays, if this is too much"
        yield note("leaves", paths, constraint, remedy, "no array")
    if paths := [path for path, match in chosen.items() if match.number == NO_RULE]:
        constraint = f"these {len(paths)} are of one element, and replicated without a row"
        yield note("leaves", paths, constraint, "a row may say so", "one element")


def _bytes(leaf: Any) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize


@dataclass(frozen=True)
class Trial:
    """What became of one rule: `taken`, `too late`, `near miss` or `no match`, with the reason."""

    number: int
    regex: str
    verdict: str
    reason: str


def why(rules: Rules, params: Any, path: str, mesh: Any) -> list[Trial]:
    """Every rule in order, tried on the parameter at `path`, also in a table with other errors.

    Raises ConfigError if there is no such parameter, or a row is malformed.
    """
    axis_sizes = axis_sizes_of(mesh)
    leaves = dict(paths_and_leaves(params))
    if path not in leaves:
        close = difflib.get_close_matches(path, leaves, n=3, cutoff=0.4)
        remedy = f"did you mean {' or '.join(close)}?" if close else "explain lists all paths"
        raise ConfigError([Problem("path", path, "is not a parameter", remedy)], "--why")
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
            verdict, reason = "near miss", f"matches only part of the path; all of it: {wider}"
        trials.append(Trial(number, regex, verdict, reason))
    return trials


def _choice(rules: Rules, match: Match, path: str, leaf: Any, axis_sizes: Mapping[str, int]) -> str:
    """Which spec of the rule is used, and why not those before it."""
    chosen, findings = choose(rules, {path: leaf}, axis_sizes)
    if path not in chosen:
        return "; ".join(str(finding) for finding in findings if finding.parameter == path)
    value = chosen[path].value
    if len(match.values) == 1:
        return f"the first that matches all of the path: {value}"
    refused = misfits(path, chosen[path], leaf.shape, axis_sizes)[: chosen[path].chosen]
    reasons = "".join(f"; not {match.values[i]}: {r[0].constraint}" for i, r in enumerate(refused))
    return f"spec {chosen[path].chosen + 1} of {len(match.values)}, {value}{reasons}"
