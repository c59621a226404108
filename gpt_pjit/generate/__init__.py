"""Text from a model.

`stream` reads the prompts in one pass and writes token by token against a cache of keys and values,
some tokens for each dispatch (`stream.py`, `decode.py`); `continuation.py` turns ids into text.
`python -m gpt_pjit.generate` is the command.
"""

from gpt_pjit.generate.continuation import Continuation as Continuation
from gpt_pjit.generate.decode import Sampling as Sampling
from gpt_pjit.generate.stream import sample as sample, stream as stream
