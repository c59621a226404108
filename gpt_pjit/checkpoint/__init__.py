"""Checkpoints listed, averaged and grown; `combine.py` has the arithmetic."""
