"""What a trained model is worth, in numbers that others can compute.

Requests for log-likelihoods (`requests.py`) are scored over the mesh (`scorer.py`), similar lengths
together and the context of several once (`batches.py`). On that stand bits per byte of texts
(`texts.py`, `wikitext.py`), the tasks with a right answer (`choices.py`), the distribution of token
losses (`losses.py`), and length extrapolation (`lengths.py`); their data (`sources.py`), names
(`tasks.py`) and standard errors (`statistics.py`). Results become JSON (`results.py`) and tables
beside others (`report.py`, `published.py`).
`lm_eval/` is the model as lm-eval knows models; only it needs that package.
`python -m gpt_pjit.evaluate` is the command line.
"""

from gpt_pjit.evaluate.report import results_table as results_table
from gpt_pjit.evaluate.results import Row as Row, read_results as read_results
