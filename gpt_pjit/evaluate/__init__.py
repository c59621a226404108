"""What a trained model is worth, in numbers that others can compute.

Requests for log-likelihoods (`requests.py`) are scored over the mesh (`scorer.py`), similar lengths
together and the context of several once (`batches.py`). On that stand bits per byte of texts
(`texts.py`, `wikitext.py`), the tasks with a right answer (`choices.py`), the distribution of token
losses (`losses.py`), and length extrapolation (`lengths.py`); their data (`sources.py`), names
(`tasks.py`) and standard errors (`statistics.py`). Results become JSON and tables beside others
(`report.py`, `published.py`).
`lm_eval/` is the model as lm-eval knows models; only it needs that package.
`python -m gpt_pjit.evaluate` is the command line.
"""

from gpt_pjit.evaluate.batches import Request
from gpt_pjit.evaluate.requests import rolling_requests
from gpt_pjit.evaluate.scorer import Scored, Scorer
from gpt_pjit.evaluate.tasks import prepare_jobs, prepare_tasks
from gpt_pjit.evaluate.texts import Document, Result, prepare_texts

__all__ = [
    "Document",
    "Request",
    "Result",
    "Scored",
    "Scorer",
    "prepare_jobs",
    "prepare_tasks",
    "prepare_texts",
    "rolling_requests",
]
