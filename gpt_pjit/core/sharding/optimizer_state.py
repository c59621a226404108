"""Specs of an optimizer's state: leaves inherit their parameter's spec; others need a rule."""

from __future__ import annotations

import math
from typing import Any

import jax
import optax
from jax.sharding import PartitionSpec as P

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.sharding.placement import malformed
from gpt_pjit.core.sharding.rules import Finding, Rules, paths_and_leaves, try_rules

TABLE = "optimizer_specs rules"


def state_parameters(tx: Any, params: Any) -> dict[str, str | None]:
    """For each path of `tx`'s state, the path of the parameter that it belongs to, or None."""
    paths = jax.tree.unflatten(jax.tree.structure(params), [p for p, _ in paths_and_leaves(params)])
    owners = optax.tree.map_params(
        tx,
        lambda leaf, path: leaf if _is_masked(leaf) else path,
        jax.eval_shape(tx.init, params),
        paths,
        transform_non_params=lambda leaf: leaf,
        is_leaf=_is_masked,
    )
    return {
        path: owner if isinstance(owner, str) else None for path, owner in paths_and_leaves(owners)
    }


def optimizer_specs(tx: Any, params: Any, specs: Any, rules: Rules = ()) -> Any:
    """Specs of `tx`'s state; `specs` is the optimizer tree of a placement.

    A leaf with its parameter's shape has its parameter's spec; a leaf of one element is replicated.
    Any other (Adafactor's factors, a vector of coefficients) is placed by a row of `rules` over the
    paths of these leaves; raises ConfigError if no row places one.
    """
    state = jax.eval_shape(tx.init, params)
    spec_of = dict(paths_and_leaves(specs))
    shapes = {path: leaf.shape for path, leaf in paths_and_leaves(params)}
    owners = state_parameters(tx, params)
    placed: dict[str, P] = {}
    rest: dict[str, tuple[int, ...]] = {}
    for path, leaf in paths_and_leaves(state):
        owner = owners[path]
        if owner is not None and leaf.shape == shapes[owner]:
            placed[path] = spec_of[owner]
        elif math.prod(leaf.shape) == 1:
            placed[path] = P(*(None,) * len(leaf.shape))  # as explicit mode writes it
        else:
            rest[path] = leaf.shape
    placed |= _by_rules(rules, rest, owners)
    return jax.tree.unflatten(
        jax.tree.structure(state), [placed[path] for path, _ in paths_and_leaves(state)]
    )


def _by_rules(
    rules: Rules, shapes: dict[str, tuple[int, ...]], owners: dict[str, str | None]
) -> dict[str, P]:
    matches, findings = try_rules(rules, list(shapes), TABLE)
    findings = [finding for finding in findings if finding.kind != "unmatched"]
    for path, shape in shapes.items():
        if path in matches:
            match = matches[path]
            findings += malformed(path, match, match.value, shape)
            continue
        owner = owners[path]
        whose = "no parameter" if owner is None else f"{owner}, but not of its shape"
        constraint = f"state of {whose}, and no rule matches it"
        remedy = f"pass optimizer_specs rules with a row ({path!r}, {(None,) * len(shape)})"
        findings.append(
            Finding(path, shape, constraint, remedy, "unmatched", owner or "", table=TABLE)
        )
    if findings:
        raise ConfigError(findings, TABLE)
    return {path: P(*match.value) for path, match in matches.items()}


def _is_masked(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)
