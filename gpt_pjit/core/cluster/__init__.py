"""How the processes of a run find each other and meet, before JAX joins them.

Importing this room imports no JAX: a mistake in a command is answered at once.
"""

from gpt_pjit.core.cluster.discovery import Cluster, find_cluster
from gpt_pjit.core.cluster.meeting import SECONDS_TO_MEET, end_before_meeting, expect_meeting, meet
