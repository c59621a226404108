"""Checkpoints listed, averaged and grown, and the workdirs that are made of such weights."""

from gpt_pjit.checkpoint.derive import derived_workdir as derived_workdir
