"""Does what is tuned at one width hold at another? The coordinate check of muP, on a CPU.

`check.py` trains a config for a few steps at several widths and measures its activations;
`command.py` shows them, with the config's tables for widths and without.
"""
