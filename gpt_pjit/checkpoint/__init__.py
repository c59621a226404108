"""Checkpoints looked at, averaged, grown; workdirs made of other weights."""

from gpt_pjit.checkpoint.derived import (
    derived_workdir as derived_workdir,
    no_data_yet as no_data_yet,
)
