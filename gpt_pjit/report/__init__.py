"""One look at runs: what they recorded (`record.py`), tables (`views.py`), curves (`charts.py`).

`profile.py` reads the traces of a profiler.
"""
