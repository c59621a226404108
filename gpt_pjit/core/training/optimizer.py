"""AdamW; the rule engine sets weight decay and learning rate per parameter."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax

from gpt_pjit.config import Config
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.parameters import matrix_rules
from gpt_pjit.core.sharding import (
    SCANNED,
    Finding,
    Match,
    Rules,
    path_string,
    paths_and_leaves,
    try_rules,
)
from gpt_pjit.core.training.schedule import learning_rate


def make_optimizer(config: Config, params: Any) -> optax.GradientTransformation:
    """Global-norm clip, then AdamW; `params` may be shapes.

    Matrices are decayed, or as `optim.decay_rules` say; `optim.lr_rules` multiply the whole update.
    """
    if findings := optimizer_findings(config, params):
        raise ConfigError(findings, "optim")
    c = config.optim
    rates = jax.tree.map(
        lambda factor: c.weight_decay * factor, _factors(_decay_rules(config), params)
    )
    adamw = optax.chain(
        optax.scale_by_adam(b1=c.b1, b2=c.b2),
        optax.stateless(lambda updates, params: jax.tree.map(_decayed, updates, params, rates)),
        optax.scale_by_learning_rate(learning_rate(c)),
    )
    if not c.lr_rules:
        return optax.chain(optax.clip_by_global_norm(c.clip_norm), adamw)
    factors = _factors(c.lr_rules, params)
    scale = optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors))
    return optax.chain(optax.clip_by_global_norm(c.clip_norm), adamw, scale)


def optimizer_findings(config: Config, params: Any) -> list[Finding]:
    """All problems of the optimizer's two tables."""
    tables = {"optim.decay_rules": _decay_rules(config), "optim.lr_rules": config.optim.lr_rules}
    leaves = dict(paths_and_leaves(params))
    found: list[Finding] = []
    for table, rules in tables.items():
        matches, findings = try_rules(rules, list(leaves), table) if rules else ({}, [])
        found += findings
        for path, match in matches.items():
            found += _factor_findings(path, leaves[path].shape, match, table)
    return found


def _decay_rules(config: Config) -> Rules:
    return config.optim.decay_rules or matrix_rules(config.model)


def _decayed(update: jax.Array, param: jax.Array, rate: Any) -> jax.Array:
    return update + rate * param if np.any(rate) else update


def _factors(rules: Rules, params: Any) -> Any:
    """For each parameter a float, or an array [L, 1, ...] with one factor for each layer."""
    matches, _ = try_rules(rules, [path for path, _ in paths_and_leaves(params)])

    def factor(key_path: tuple[Any, ...], leaf: Any) -> Any:
        value = matches[path_string(key_path)].value
        if isinstance(value, tuple):
            return np.asarray(value, np.float32).reshape(-1, *(1,) * (len(leaf.shape) - 1))
        return float(value)

    return jax.tree_util.tree_map_with_path(factor, params)


def _factor_findings(
    path: str, shape: tuple[int, ...], match: Match, table: str
) -> Iterator[Finding]:
    def finding(constraint: str, remedy: str) -> Finding:
        where, value = (
            f"{path} ({match})",
            match.values[0] if len(match.values) == 1 else match.values,
        )
        return Finding(where, value, constraint, remedy, "factor", path, match.number, table)

    per_layer = f"a number, or {shape[0]} numbers, one for each layer" if shape else "a number"
    if len(match.values) > 1:
        yield finding("has several values", f"write {per_layer} in one tuple")
        return
    value = match.value
    numbers = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(n, int | float) and math.isfinite(n) and n >= 0 for n in numbers):
        yield finding("must be a number of at least 0", f"write {per_layer}")
    elif isinstance(value, tuple) and not path.startswith(SCANNED):
        yield finding("has one number for each layer, but there are none", "write one number")
    elif isinstance(value, tuple) and len(value) != shape[0]:
        yield finding(f"has {len(value)} numbers for {shape[0]} layers", f"write {per_layer}")
