"""Optimizers, schedule, and the explicitly sharded training and evaluation steps."""

from gpt_pjit.core.training.depth import by_layer, depth_metrics
from gpt_pjit.core.training.evaluation import eval_step, validation_metrics
from gpt_pjit.core.training.muon import dealing
from gpt_pjit.core.training.optimizer import chosen_optimizers, make_optimizer, optimizer_findings
from gpt_pjit.core.training.schedule import learning_rate, warmup_steps
from gpt_pjit.core.training.step import TrainState
from gpt_pjit.core.training.training import Training, build_training
