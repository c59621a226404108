"""Is this machine, or this pod, ready to train? A minute at most, and a remedy for each fault.

`host.py` looks at one host, `pod.py` at all of them together; a check returns what it found, or
raises `CheckFailedError` with the remedy. `command.py` runs them in order and shows the table.
"""
