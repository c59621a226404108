"""The learning rate of each step: warm-up, and one of four ways on from there."""

import optax

from gpt_pjit.config import OptimConfig


def learning_rate(c: OptimConfig) -> optax.Schedule:
    """Linear warm-up to `peak_lr`, then `schedule` to `final_lr_fraction` of it at the last step.

    `wsd` (warm-up, stable, decay: Hu et al., 2024) stays at the peak and decays linearly over the
    last `decay_steps`, as compared by Hägele et al., 2024. `linear` decays from the warm-up on, and
    `constant` never.
    """
    warmup, peak, end = warmup_steps(c), c.peak_lr, c.peak_lr * c.final_lr_fraction
    first = peak / (warmup + 1)  # not 0: the first step counts too
    if c.schedule == "cosine":
        return optax.schedules.warmup_cosine_decay_schedule(first, peak, warmup, c.steps, end)
    decay = {"wsd": c.decay_steps, "linear": c.steps - warmup, "constant": 0}[c.schedule]
    parts = [
        optax.schedules.linear_schedule(first, peak, warmup),
        optax.schedules.constant_schedule(peak),
        optax.schedules.linear_schedule(peak, end, decay),  # constant if there are no steps
    ]
    return optax.schedules.join_schedules(parts, [warmup, c.steps - decay])


def warmup_steps(c: OptimConfig) -> int:
    """As configured, or a tenth of the run if the run is too short for that."""
    return c.warmup_steps if c.warmup_steps < c.steps else c.steps // 10
