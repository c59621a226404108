"""What surrounds a computation: start-up of hosts, the workdir, metrics, the console."""

from gpt_pjit.runtime.console import say as say
from gpt_pjit.runtime.hosts import (
    global_array as global_array,
    local_rows as local_rows,
    start as start,
    usable_cores as usable_cores,
    wait_for_all as wait_for_all,
)
from gpt_pjit.runtime.interrupt import Interrupt as Interrupt
from gpt_pjit.runtime.metrics import StepLog as StepLog
from gpt_pjit.runtime.workdir import open_workdir as open_workdir
