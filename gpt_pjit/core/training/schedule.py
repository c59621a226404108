"""The learning rate of each step."""

from __future__ import annotations

import optax

from gpt_pjit.config import OptimConfig


def learning_rate(c: OptimConfig) -> optax.Schedule:
    """Linear warm-up to `peak_lr`, then cosine to `final_lr_fraction` of it at the last step."""
    warmup = warmup_steps(c)
    return optax.schedules.warmup_cosine_decay_schedule(
        init_value=c.peak_lr / (warmup + 1),  # not 0: the first step counts too
        peak_value=c.peak_lr,
        warmup_steps=warmup,
        decay_steps=c.steps,
        end_value=c.peak_lr * c.final_lr_fraction,
    )


def warmup_steps(c: OptimConfig) -> int:
    """As configured, or a tenth of the run if the run is too short for that."""
    return c.warmup_steps if c.warmup_steps < c.steps else c.steps // 10
