"""Optimizer, schedule, and the explicitly sharded training and evaluation steps."""

from gpt_pjit.training.optimizer import learning_rate as learning_rate
from gpt_pjit.training.program import Program as Program, build as build
from gpt_pjit.training.step import TrainState as TrainState
from gpt_pjit.training.validation import validation_metrics as validation_metrics
