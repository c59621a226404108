"""Text from a model.

`stream` reads the prompts in one pass and writes token by token against a cache of keys and values
(`cache.py`), some tokens for each dispatch (`decode.py`), and turns ids into text (`stream.py`).
`python -m gpt_pjit.generate` is the command.
"""

from gpt_pjit.generate.cache import EMPTY, Cache, extend, with_slots
from gpt_pjit.generate.decode import Sampling
from gpt_pjit.generate.stream import Continuation, sample, stream
