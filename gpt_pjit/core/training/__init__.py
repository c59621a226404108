"""Optimizers, schedule, and the explicitly sharded training and evaluation steps."""

from gpt_pjit.core.training.evaluation import (
    eval_step as eval_step,
    validation_metrics as validation_metrics,
)
from gpt_pjit.core.training.muon import dealing as dealing
from gpt_pjit.core.training.optimizer import (
    chosen_optimizers as chosen_optimizers,
    make_optimizer as make_optimizer,
    optimizer_findings as optimizer_findings,
)
from gpt_pjit.core.training.schedule import (
    learning_rate as learning_rate,
    warmup_steps as warmup_steps,
)
from gpt_pjit.core.training.step import TrainState as TrainState
from gpt_pjit.core.training.training import (
    Training as Training,
    build_training as build_training,
)
