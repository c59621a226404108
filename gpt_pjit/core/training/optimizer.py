"""Optimizers; the rule engine chooses one for each parameter, with its factors."""

import difflib
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

from gpt_pjit.config import Config, ModelConfig
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.parameters import gpt_dimensions, matrix_rules
from gpt_pjit.core.sharding import (
    SCANNED,
    Finding,
    Match,
    Rules,
    match_rules,
    path_string,
    paths_and_leaves,
    try_rules,
    values,
)
from gpt_pjit.core.training.muon import scale_by_muon
from gpt_pjit.core.training.schedule import learning_rate

RULES = "optim.rules"
DEFAULT: Rules = ((".*", "adamw"),)


def make_optimizer(config: Config, params: Any) -> optax.GradientTransformation:
    """Global-norm clip, the optimizer of each parameter, decoupled decay, and the learning rate;
    `params` may be shapes.

    `optim.rules` choose, AdamW where there are none. Matrices are decayed, or as
    `optim.decay_rules` say; `optim.lr_rules` multiply the whole update.
    """
    if findings := optimizer_findings(config, params):
        raise ConfigError(findings, "optim")
    c = config.optim
    rates = jax.tree.map(
        lambda factor: c.weight_decay * factor, _factors(_decay_rules(config), params)
    )
    optimizer = optax.chain(
        _directions(config, params),
        optax.stateless(lambda updates, params: jax.tree.map(_decayed, updates, params, rates)),
        optax.scale_by_learning_rate(learning_rate(c)),
    )
    clip = optax.clip_by_global_norm(c.clip_norm)
    peaks = {peak for _, peak in chosen_optimizers(config, params).values()}
    if not c.lr_rules and peaks == {c.peak_lr}:
        return optax.chain(clip, optimizer)
    factors = _rate_factors(config, params)
    scale = optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors))
    return optax.chain(clip, optimizer, scale)


def chosen_optimizers(config: Config, params: Any) -> dict[str, tuple[str, float]]:
    """The name of each parameter's optimizer, and its peak learning rate, by path."""
    c = config.optim
    paths = [path for path, _ in paths_and_leaves(params)]
    matches, _ = try_rules(c.rules or DEFAULT, paths, RULES)
    rows = {path: match.value for path, match in matches.items()}
    return {path: row if isinstance(row, tuple) else (row, c.peak_lr) for path, row in rows.items()}


def optimizer_findings(config: Config, params: Any) -> list[Finding]:
    c = config.optim
    factors = {"optim.decay_rules": _decay_rules(config), "optim.lr_rules": c.lr_rules}
    leaves = dict(paths_and_leaves(params))
    found: list[Finding] = []
    for table, rules in ({RULES: c.rules} | factors).items():
        matches, findings = try_rules(rules, list(leaves), table) if rules else ({}, [])
        found += findings
        for path, match in matches.items():
            if table == RULES:
                found += _choice_findings(path, match, config.model)
            else:
                found += _factor_findings(path, leaves[path].shape, match, table)
    return found


def _directions(config: Config, params: Any) -> optax.GradientTransformation:
    """The update of each parameter, before decay and learning rate."""
    if not config.optim.rules:
        return OPTIMIZERS["adamw"](config, params)
    chosen = chosen_optimizers(config, params)
    labels = jax.tree_util.tree_map_with_path(lambda path, _: chosen[path_string(path)][0], params)
    used = sorted({name for name, _ in chosen.values()})
    return optax.partition({name: OPTIMIZERS[name](config, params) for name in used}, labels)


def _adamw(config: Config, params: Any) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=config.optim.b1, b2=config.optim.b2)


def _muon(config: Config, params: Any) -> optax.GradientTransformation:
    letters = values(match_rules(gpt_dimensions(config.model), params))
    return scale_by_muon(config.model.dtype, dict(paths_and_leaves(letters)))


def _lion(config: Config, params: Any) -> optax.GradientTransformation:
    return optax.scale_by_lion()


def _adafactor(config: Config, params: Any) -> optax.GradientTransformation:
    """With the learning rate as it is, not times the size of the parameter."""
    return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))


OPTIMIZERS = {"adamw": _adamw, "muon": _muon, "lion": _lion, "adafactor": _adafactor}


def _decay_rules(config: Config) -> Rules:
    return config.optim.decay_rules or matrix_rules(config.model)


def _decayed(update: jax.Array, param: jax.Array, rate: Any) -> jax.Array:
    return update + rate * param if np.any(rate) else update


def _rate_factors(config: Config, params: Any) -> Any:
    """What multiplies the update of each parameter: its own learning rate, and `lr_rules`."""
    chosen, base = chosen_optimizers(config, params), config.optim.peak_lr
    factors = _factors(config.optim.lr_rules or ((".*", 1.0),), params)
    return jax.tree_util.tree_map_with_path(
        lambda path, factor: factor * (chosen[path_string(path)][1] / base), factors
    )


def _factors(rules: Rules, params: Any) -> Any:
    """For each parameter a float, or an array [L, 1, ...] with one factor for each layer."""
    matches, _ = try_rules(rules, [path for path, _ in paths_and_leaves(params)])

    def factor(key_path: tuple[Any, ...], leaf: Any) -> Any:
        value = matches[path_string(key_path)].value
        if isinstance(value, tuple):
            return np.asarray(value, np.float32).reshape(-1, *(1,) * (len(leaf.shape) - 1))
        return float(value)

    return jax.tree_util.tree_map_with_path(factor, params)


def _finding(
    path: str, match: Match, kind: str, table: str, constraint: str, remedy: str
) -> Finding:
    value = match.values[0] if len(match.values) == 1 else match.values
    where = f"{path} ({match})"
    return Finding(where, value, constraint, remedy, kind, path, match.number, table)


def _factor_findings(
    path: str, shape: tuple[int, ...], match: Match, table: str
) -> Iterator[Finding]:
    finding = partial(_finding, path, match, "factor", table)
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


def _choice_findings(path: str, match: Match, c: ModelConfig) -> Iterator[Finding]:
    finding, value = partial(_finding, path, match, "optimizer", RULES), match.value
    name, *rates = value if isinstance(value, tuple) and value else (value,)
    if len(match.values) > 1 or len(rates) > 1:
        yield finding("has several values", "write a name, or one tuple (name, peak_lr)")
        return
    if name not in OPTIMIZERS:
        close = difflib.get_close_matches(str(name), OPTIMIZERS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        yield finding("is not an optimizer", f"{hint}known: {', '.join(OPTIMIZERS)}")
    if not all(isinstance(n, int | float) and math.isfinite(n) and n > 0 for n in rates):
        yield finding("its learning rate must be above 0", "write (name, peak_lr), as 0.02")
    if name == "muon" and (why := _no_muon(path, c)):
        yield finding(f"muon cannot train it: it is {why}", "put a row with adamw before this one")


def _no_muon(path: str, c: ModelConfig) -> str:
    """Why Muon, which orthogonalises the matrices of layers, does not take this parameter."""
    matches, _ = try_rules(matrix_rules(c), [path])
    if not matches[path].value:
        return "a vector in each layer" if path.startswith(SCANNED) else "a vector"
    rows = "an embedding or head, whose rows belong to tokens and not to a space of features"
    return "" if path.startswith(SCANNED) else rows
