"""Ahead-of-time plans: the run's own program compiled for hardware that is not here, and read.

`python -m gpt_pjit.plan` is its command line.
"""
