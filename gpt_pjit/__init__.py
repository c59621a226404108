"""gpt_pjit: a trainer for GPT language models whose partitioning is one table of rules."""

import signal
import sys

# `python -m gpt_pjit.ROOM`, of which this is the first line to run: until its imports are done and
# `report_errors` takes over, there is nothing to save, and Ctrl-C ends it without a traceback.
if sys.argv[:1] == ["-m"]:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

__version__ = "0.1.0"
