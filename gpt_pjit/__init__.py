"""gpt_pjit: a trainer for GPT language models whose partitioning is one table of rules."""

__version__ = "0.1.0"
