"""The model as lm-eval knows models (`model.py`); only this room needs that package.

Importing it registers `gpt_pjit` with lm-eval, which then accepts it in a program too:
`lm_eval.simple_evaluate(model="gpt_pjit", ...)`. `python -m gpt_pjit.evaluate.lm_eval` is lm-eval's
own command line.
"""

from importlib.util import find_spec

if find_spec("lm_eval") is None:
    raise ModuleNotFoundError("lm-eval is not installed: pip install 'gpt_pjit[eval]'")

from gpt_pjit.evaluate.lm_eval.model import GptPjitLM

__all__ = ["GptPjitLM"]
