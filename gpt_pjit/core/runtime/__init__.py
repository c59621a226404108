"""What surrounds the computation: hosts, the workdir, files, metrics, signals."""

from gpt_pjit.core.runtime.changes import Origin, entries_of
from gpt_pjit.core.runtime.hosts import (
    connect,
    global_array,
    global_batch,
    initialize_devices,
    local_rows,
)
from gpt_pjit.core.runtime.metrics import StepLog
from gpt_pjit.core.runtime.planned import planned_step
from gpt_pjit.core.runtime.profiler import Profiler
from gpt_pjit.core.runtime.provenance import code_facts, this_start
from gpt_pjit.core.runtime.timeline import Timeline
from gpt_pjit.core.runtime.together import (
    all_or_none,
    check_agreement,
    ending_together,
    everyone,
    from_process_0,
    round_trip,
    to_process_0,
)
from gpt_pjit.core.runtime.virtual_pod import pod_devices
from gpt_pjit.core.runtime.watch import StopRequested, Watch
from gpt_pjit.core.runtime.workdir import (
    check_none_saved,
    check_same_data,
    has_begun,
    note,
    only_trainer,
    open_workdir,
    read_run,
    record_start,
)
