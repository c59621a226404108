"""Text from a model.

`generate` gives token ids, `stream` continuations that grow. Both read the prompts in one pass
(`decode.py`), write token by token against a cache of keys and values, some tokens for each
dispatch, draw by `sample.py`, and turn ids into text by `continuation.py`. `python -m
gpt_pjit.generate` is the command line.
"""

from gpt_pjit.generate.closing import sample as sample
from gpt_pjit.generate.continuation import Continuation as Continuation
from gpt_pjit.generate.generate import generate as generate, stream as stream
from gpt_pjit.generate.sample import Sampling as Sampling
