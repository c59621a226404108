"""Process 0 leads: it alone reads texts and tasks, and keeps the results.

To use the devices of all, it orders each computation from the others, which `follow` in
followers.py.
"""

from pathlib import Path
from typing import Any

from gpt_pjit.core.runtime import from_process_0
from gpt_pjit.trained import Trained, load_trained


def order(name: str, **arguments: Any) -> None:
    """Has the other processes make the call that process 0, this one, makes next."""
    from_process_0([name, arguments])


def load_everywhere(checkpoint: str | Path, *, tensor: int = 1, dtype: str = "") -> Trained:
    """`load_trained` on all processes, of which this one is process 0."""
    order("load", checkpoint=str(checkpoint), tensor=tensor, dtype=dtype)
    return load_trained(checkpoint, tensor=tensor, dtype=dtype)
