"""Specs of an optimizer's state: leaves inherit their parameter's spec, or some entries."""

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
COEFFICIENTS = 64  # elements of state of no parameter, such as Muon's in optax, or a key


def state_parameters(tx: Any, params: Any) -> dict[str, str | None]:
    """For each path of `tx`'s state, the path of the parameter that it belongs to, or None.

    Raises ConfigError for an optimizer whose state optax cannot match to parameters.
    """
    paths = jax.tree.unflatten(jax.tree.structure(params), [p for p, _ in paths_and_leaves(params)])
    try:
        owners = optax.tree.map_params(
            tx,
            lambda leaf, path: leaf if _is_masked(leaf) else path,
            jax.eval_shape(tx.init, params),
            paths,
            transform_non_params=lambda leaf: leaf,
            is_leaf=_is_masked,
        )
    except ValueError as error:
        message = (
            "optax cannot tell which parameter each part of this optimizer's state belongs to "
            f"({str(error).splitlines()[0].rstrip(':.')}); use an optimizer whose state has one "
            "leaf for each parameter"
        )
        raise ConfigError([message], TABLE) from None
    return {
        path: owner if isinstance(owner, str) else None for path, owner in paths_and_leaves(owners)
    }


def optimizer_specs(tx: Any, params: Any, specs: Any, rules: Rules = ()) -> Any:
    """Specs of `tx`'s state; `specs` is the optimizer tree of a placement.

    A leaf with its parameter's shape has its parameter's spec; a leaf with some of its parameter's
    dimensions, such as Adafactor's factors, has the entries of these. A leaf of one element, and up
    to 64 of no parameter, are replicated. A row of `rules`, over the paths of all leaves without
    their parameter's shape and of more than one element, comes before these; raises ConfigError if
    nothing places a leaf.
    """
    state = jax.eval_shape(tx.init, params)
    shapes = {path: leaf.shape for path, leaf in paths_and_leaves(params)}
    owners = state_parameters(tx, params)
    spec_of = dict(paths_and_leaves(specs))
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
    if rest or rules:
        placed |= _by_rules(rules, rest, owners, _derived(tx, params, spec_of, owners))
    return jax.tree.unflatten(
        jax.tree.structure(state), [placed[path] for path, _ in paths_and_leaves(state)]
    )


def _derived(
    tx: Any, params: Any, spec_of: dict[str, P], owners: dict[str, str | None]
) -> dict[str, P]:
    """Specs by path of what has dimensions of its parameter, and of small state of none.

    The state of parameters whose sizes are all different, in the same order, says which dimensions.
    """
    probe = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            tuple(len(leaf.shape) * size + dim for dim, size in enumerate(leaf.shape)), leaf.dtype
        ),
        params,
    )
    sizes = {path: leaf.shape for path, leaf in paths_and_leaves(probe)}
    derived: dict[str, P] = {}
    for path, leaf in paths_and_leaves(jax.eval_shape(tx.init, probe)):
        owner = owners.get(path)
        if owner is None and math.prod(leaf.shape) <= COEFFICIENTS:
            derived[path] = P(*(None,) * len(leaf.shape))
        elif owner is not None and set(leaf.shape) <= set(sizes[owner]):
            entries = dict(zip(sizes[owner], spec_of[owner], strict=True))
            derived[path] = P(*(entries[size] for size in leaf.shape))
    return derived


def _by_rules(
    rules: Rules,
    shapes: dict[str, tuple[int, ...]],
    owners: dict[str, str | None],
    derived: dict[str, P],
) -> dict[str, P]:
    matches, findings = try_rules(rules, list(shapes), TABLE)
    findings = [finding for finding in findings if finding.kind != "unmatched"]
    for path, shape in shapes.items():
        if path in matches:
            match = matches[path]
            findings += malformed(path, match, match.value, shape)
        if path in matches or path in derived:
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
    written = {path: P(*match.value) for path, match in matches.items()}
    return {path: spec for path, spec in (derived | written).items() if path in shapes}


def _is_masked(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)
