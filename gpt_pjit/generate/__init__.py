"""Text from a model.

`stream` reads the prompts in one pass and writes token by token against a cache of keys and values
(`cache.py`), some tokens for each dispatch (`decode.py`), and turns ids into text (`stream.py`).
`python -m gpt_pjit.generate` is the command.
"""

from gpt_pjit.generate.cache import (
    EMPTY as EMPTY,
    Cache as Cache,
    extend as extend,
    with_slots as with_slots,
)
from gpt_pjit.generate.decode import Sampling as Sampling
from gpt_pjit.generate.stream import (
    Continuation as Continuation,
    sample as sample,
    stream as stream,
)
