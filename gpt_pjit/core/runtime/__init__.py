"""What surrounds the computation: hosts, the workdir, files, metrics, signals."""

from gpt_pjit.core.runtime.changes import (
    Origin as Origin,
    entries_of as entries_of,
)
from gpt_pjit.core.runtime.hosts import (
    global_array as global_array,
    global_batch as global_batch,
    initialize_devices as initialize_devices,
    local_rows as local_rows,
)
from gpt_pjit.core.runtime.metrics import StepLog as StepLog
from gpt_pjit.core.runtime.provenance import (
    code_facts as code_facts,
    this_start as this_start,
)
from gpt_pjit.core.runtime.together import (
    all_or_none as all_or_none,
    check_agreement as check_agreement,
    ending_together as ending_together,
    everyone as everyone,
    from_process_0 as from_process_0,
    round_trip as round_trip,
    to_process_0 as to_process_0,
)
from gpt_pjit.core.runtime.virtual_pod import pod_devices as pod_devices
from gpt_pjit.core.runtime.watch import StopRequested as StopRequested, Watch as Watch
from gpt_pjit.core.runtime.workdir import (
    check_none_saved as check_none_saved,
    check_same_data as check_same_data,
    finished_steps as finished_steps,
    has_begun as has_begun,
    note_finished as note_finished,
    note_saved as note_saved,
    only_trainer as only_trainer,
    open_workdir as open_workdir,
    read_run as read_run,
    record_start as record_start,
)
