"""How the processes of a run find each other and meet, before JAX joins them.

Importing this room imports no JAX: a mistake in a command is answered at once.
"""

from gpt_pjit.core.cluster.discovery import Cluster as Cluster, find_cluster as find_cluster
from gpt_pjit.core.cluster.meeting import (
    SECONDS_TO_MEET as SECONDS_TO_MEET,
    end_before_meeting as end_before_meeting,
    expect_meeting as expect_meeting,
    meet as meet,
)
