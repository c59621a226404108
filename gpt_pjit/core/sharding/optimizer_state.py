"""Specs of an optimizer's state: leaves inherit their parameter's spec, or some entries."""

import math
import re
from typing import Any

import jax
from jax.sharding import PartitionSpec as P
from jax.tree_util import SequenceKey, tree_leaves_with_path

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.sharding.placement import is_array, malformed
from gpt_pjit.core.sharding.rules import Finding, Rules, path_string, paths_and_leaves, try_rules

TABLE = "optimizer_specs rules"
COEFFICIENTS = 64  # elements of state of no parameter, such as Muon's in optax, or a key


def state_shapes(tx: Any, params: Any) -> Any:
    """The shapes of the state of `params`, without what is no array among them."""
    init = getattr(tx, "init", tx)
    arrays = jax.tree.map(lambda leaf: leaf if is_array(leaf) else None, params)
    return jax.eval_shape(init, arrays)


def state_parameters(tx: Any, params: Any) -> dict[str, str | None]:
    """For each path of `tx`'s state, the path of the parameter that it belongs to, or None.

    Its path ends with that of its parameter, or with that and its place in a list.
    """
    parameters = {keys: path_string(keys) for keys, _ in tree_leaves_with_path(params)}

    def owner(keys: tuple[Any, ...]) -> str | None:
        ends = (keys[start:] for start in range(len(keys) + 1))
        if found := next((end for end in ends if end in parameters), None):
            return parameters[found]
        in_list = keys and isinstance(keys[-1], SequenceKey)
        return owner(keys[:-1]) if in_list else parameters.get(())

    state = tree_leaves_with_path(state_shapes(tx, params))
    return {path_string(keys): owner(keys) for keys, _ in state}


def optimizer_specs(tx: Any, params: Any, specs: Any, rules: Rules = ()) -> Any:
    """Specs of the state of any optax optimizer.

    A leaf with its parameter's shape has its parameter's spec; a leaf with some of its parameter's
    dimensions, such as Adafactor's factors, has the entries of these, and so has a stack of leaves
    of its shape. A leaf of one element, and up to 64 of no parameter, are replicated.

    Args:
      tx: a GradientTransformation, or a function from parameters to any tree with their state, such
        as a `TrainState`; of the parameters in that tree, each has its spec too.
      params: the parameters as `place` takes them.
      specs: a tree of their specs, such as `place(...).optimizer`.
      rules: `(regex, spec)` rows over the paths of all leaves of more than one element and without
        their parameter's shape; they come before what is derived.

    Returns:
      A tree like the state, of PartitionSpecs.

    Raises:
      ConfigError: if nothing places a leaf; it names the leaf and the row to write.

    >>> import jax, jax.numpy as jnp, optax
    >>> from gpt_pjit.partition import place
    >>> params = {"up": jax.ShapeDtypeStruct((512, 2048), jnp.float32)}
    >>> placement = place((("up", ("fsdp", "tp")),), params, "zero", {"fsdp": 4, "tp": 2})
    >>> optimizer_specs(optax.adam(1e-3), params, placement.optimizer)[0]
    ScaleByAdamState(count=P(), mu={'up': P('fsdp', 'tp')}, nu={'up': P('fsdp', 'tp')})
    """
    state = state_shapes(tx, params)
    shapes = {path: leaf.shape for path, leaf in paths_and_leaves(params) if is_array(leaf)}
    owners = state_parameters(tx, params)
    spec_of = dict(paths_and_leaves(specs))
    placed: dict[str, P] = {}
    rest: dict[str, tuple[int, ...]] = {}
    for path, leaf in paths_and_leaves(state):
        owner = owners[path]
        if owner is not None and leaf.shape == shapes[owner]:
            placed[path] = spec_of[owner]
        elif math.prod(leaf.shape) <= 1:
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

    def probe(leaf: Any) -> Any:
        if not is_array(leaf):
            return None
        sizes = (len(leaf.shape) * size + dim for dim, size in enumerate(leaf.shape))
        return jax.ShapeDtypeStruct(tuple(sizes), leaf.dtype)

    probes = jax.tree.map(probe, params)
    sizes = {path: leaf.shape for path, leaf in paths_and_leaves(probes)}
    derived: dict[str, P] = {}
    for path, leaf in paths_and_leaves(state_shapes(tx, probes)):
        owner = owners.get(path)
        if owner is None:
            if math.prod(leaf.shape) <= COEFFICIENTS:
                derived[path] = P(*(None,) * len(leaf.shape))
            continue
        stacked = len(leaf.shape) - len(sizes[owner])
        if stacked >= 0 and leaf.shape[stacked:] == sizes[owner]:
            derived[path] = P(*(None,) * stacked, *spec_of[owner])
        elif set(leaf.shape) <= set(sizes[owner]):
            entries = dict(zip(sizes[owner], spec_of[owner], strict=True))
            derived[path] = P(*(entries.pop(size, None) for size in leaf.shape))
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
        remedy = (
            f"pass optimizer_specs rules with a row ({re.escape(path)!r}, {(None,) * len(shape)})"
        )
        findings.append(
            Finding(path, shape, constraint, remedy, "unmatched", owner or "", table=TABLE)
        )
    if findings:
        raise ConfigError(findings, TABLE)
    written = {path: P(*match.value) for path, match in matches.items()}
    return {path: spec for path, spec in (derived | written).items() if path in shapes}
