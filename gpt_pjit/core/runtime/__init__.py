"""What surrounds a computation: start-up of hosts, the workdir, metrics, the console."""

from gpt_pjit.core.runtime.files import (
    file_errors as file_errors,
    read_json as read_json,
    write_json as write_json,
    write_whole as write_whole,
)
from gpt_pjit.core.runtime.hosts import (
    global_array as global_array,
    global_batch as global_batch,
    initialize_devices as initialize_devices,
    local_rows as local_rows,
    wait_for_all as wait_for_all,
)
from gpt_pjit.core.runtime.interrupt import Interrupt as Interrupt
from gpt_pjit.core.runtime.metrics import StepLog as StepLog
from gpt_pjit.core.runtime.virtual_pod import pod_devices as pod_devices
from gpt_pjit.core.runtime.workdir import (
    check_same_data as check_same_data,
    has_begun as has_begun,
    open_workdir as open_workdir,
    read_run as read_run,
    record_start as record_start,
    this_start as this_start,
)
