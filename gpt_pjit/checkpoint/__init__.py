"""Checkpoints: a training state on disk, written asynchronously, restored onto any mesh."""

from gpt_pjit.checkpoint.checkpointer import (
    Checkpointer as Checkpointer,
    fingerprint as fingerprint,
    missing_parts as missing_parts,
    other_steps as other_steps,
    read_arrays as read_arrays,
    read_parameter as read_parameter,
    restore_params as restore_params,
    saved_steps as saved_steps,
    write_state as write_state,
)
