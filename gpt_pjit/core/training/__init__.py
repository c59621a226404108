"""Optimizer, schedule, and the explicitly sharded training and evaluation steps."""

from gpt_pjit.core.training.optimizer import (
    learning_rate as learning_rate,
    make_optimizer as make_optimizer,
    optimizer_findings as optimizer_findings,
)
from gpt_pjit.core.training.program import (
    Program as Program,
    build as build,
    sharding_rules as sharding_rules,
)
from gpt_pjit.core.training.step import TrainState as TrainState
from gpt_pjit.core.training.validation import validation_metrics as validation_metrics
