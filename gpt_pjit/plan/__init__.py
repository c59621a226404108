"""Ahead-of-time plans: the run's own program, compiled for hardware that is not here, and read.

`gpt_pjit plan` is the command line.
"""

from gpt_pjit.plan.hlo import DIRECTIONS, direction_of, scope_of
