"""Checkpoints: a training state on disk, written asynchronously, restored onto any mesh."""

from gpt_pjit.checkpoint.checkpointer import (
    Checkpointer as Checkpointer,
    restore_params as restore_params,
    saved_steps as saved_steps,
)
