"""Checkpoints: each step with a fingerprint of every array, read again on any mesh or not at all.

Orbax writes and reads them. What surrounds it here: steps that are whole, damage that is found, the
way back to the step before, and an end on all hosts when one of them cannot write.
"""

from gpt_pjit.core.checkpoints.checkpointer import Checkpointer, write_state
from gpt_pjit.core.checkpoints.fingerprints import fingerprints
from gpt_pjit.core.checkpoints.orbax_paths import orbax_folder
from gpt_pjit.core.checkpoints.reading import newest_or_wanted, read_part, restore, restore_params
from gpt_pjit.core.checkpoints.steps import (
    ITEM,
    MANIFEST,
    has_fingerprints,
    missing_parts,
    one_sentence,
    other_steps,
    require_parts,
    saved_steps,
)
