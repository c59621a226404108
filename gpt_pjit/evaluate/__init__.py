"""What a trained model is worth, in numbers that others can compute.

Requests for token losses (`batches.py`) are scored over the mesh (`scorer.py`). On that stand bits
per byte of texts and length extrapolation (`texts.py`), with the distribution of token losses
(`losses.py`), and every task of lm-eval (`harness.py`), which sees the scorer as a model of its own
kind (`model.py`). `tasks.py` turns names into jobs; results become JSON (`results.py`) and tables
beside other models (`report.py`, `published.py`). `python -m gpt_pjit.evaluate` is the command;
`python -m gpt_pjit.evaluate.lm_eval` is lm-eval's own.
"""

from gpt_pjit.evaluate.report import results_table as results_table
from gpt_pjit.evaluate.results import ModelResults as ModelResults, read_results as read_results
