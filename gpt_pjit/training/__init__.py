"""Optimizer, schedule, and the explicitly sharded training and evaluation steps."""

from gpt_pjit.training.explain import explain_config as explain_config
from gpt_pjit.training.optimizer import (
    learning_rate as learning_rate,
    optimizer_findings as optimizer_findings,
)
from gpt_pjit.training.program import (
    Program as Program,
    build as build,
    sharding_rules as sharding_rules,
)
from gpt_pjit.training.step import TrainState as TrainState
from gpt_pjit.training.validation import validation_metrics as validation_metrics
