"""AdamW, its schedule, and its decay mask from the rule engine."""

from __future__ import annotations

from typing import Any

import optax

from gpt_pjit.config import Config, OptimConfig
from gpt_pjit.partition import match_rules, matrix_rules, values


def learning_rate(c: OptimConfig) -> optax.Schedule:
    """Linear warm-up to `peak_lr`, then cosine to `final_lr_fraction` of it at the last step."""
    return optax.schedules.warmup_cosine_decay_schedule(
        init_value=c.peak_lr / (c.warmup_steps + 1),  # not 0: the first step counts too
        peak_value=c.peak_lr,
        warmup_steps=c.warmup_steps,
        decay_steps=c.steps,
        end_value=c.peak_lr * c.final_lr_fraction,
    )


def make_optimizer(config: Config, params: Any) -> optax.GradientTransformation:
    """Global-norm clip, then AdamW; `params` may be shapes. Decay falls on matrices only."""
    c = config.optim
    decayed = values(match_rules(matrix_rules(bias=config.model.bias), params, "decay rules"))
    return optax.chain(
        optax.clip_by_global_norm(c.clip_norm),
        optax.adamw(learning_rate(c), b1=c.b1, b2=c.b2, weight_decay=c.weight_decay, mask=decayed),
    )
