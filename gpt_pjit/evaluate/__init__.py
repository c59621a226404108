"""What a trained model is worth, in numbers that others can compute.

Requests for token losses are scored over the mesh (`scorer.py`). On that stand bits per byte of
texts and length extrapolation (`texts.py`), with the distribution of token losses (`losses.py`),
and every task of lm-eval (`harness.py`), which sees the scorer as a model of its own kind
(`model.py`). With several processes, process 0 leads (`orders.py`) and the others compute with it
(`followers.py`). The command prepares tasks by their names, and so does a run, which scores them as
it trains (`tasks.py`). Results become JSON and tables beside other models (`report.py`).
`python -m gpt_pjit.evaluate` is the command; `python -m gpt_pjit.evaluate.lm_eval` is lm-eval's.
"""

from gpt_pjit.evaluate.report import (
    ModelResults,
    from_record,
    read_results,
    report,
    results_table,
    value_text,
)
from gpt_pjit.evaluate.tasks import tasks_in_run
