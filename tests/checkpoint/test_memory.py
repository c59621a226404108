"""How much memory averaging and exporting take, measured in separate processes."""

import sys

import numpy as np
import pytest

from gpt_pjit.core.model import count_params, param_shapes
from tests.helpers import tiny
from tests.hf.ours import write_run
from tests.processes import run

MODEL = {"n_layers": 12, "d_model": 512, "d_ff": 2048, "n_heads": 8, "vocab_size": 1024}
SHARD = 20 * 2**20  # bytes of a file of an export

PEAK = """
import sys
from pathlib import Path
from gpt_pjit.checkpoint.combine import mean_params
from gpt_pjit.hf import export
from gpt_pjit.core.model import param_shapes
from gpt_pjit.core.runtime import read_run

def memory(name):
    status = Path("/proc/self/status").read_text()
    return int(status.split(name + ":")[1].split()[0]) * 1024

run = Path(sys.argv[1])
config, _ = read_run(run)
shapes = param_shapes(config.model, config.data.sequence_length)
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
before = memory("VmRSS")
match sys.argv[2]:
    case "average":
        mean_params(run / "checkpoints", [int(s) for s in sys.argv[3].split(",")], shapes)
    case "export":
        export(run, Path(sys.argv[3]), dtype="float32", shard_bytes=int(sys.argv[4]))
print(memory("VmHWM") - before)
"""


def peak(*arguments):
    command = [sys.executable, "-c", PEAK, *arguments]
    # Otherwise glibc keeps freed memory for each thread, more or less of it by chance.
    done = run(command, MALLOC_ARENA_MAX="1", MALLOC_TRIM_THRESHOLD_="0")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peaks_are_bounded(tmp_path):
    config = tiny(model=MODEL)
    write_run(tmp_path / "run", config, steps=range(1, 9))
    shapes = param_shapes(config.model, config.data.sequence_length)
    whole = 4 * count_params(shapes)
    largest = 4 * int(np.prod(shapes["blocks"]["mlp"]["up"]["kernel"].shape))
    slack = 40 * 2**20  # for the allocator and threads
    two = peak(tmp_path / "run", "average", "1,2")
    eight = peak(tmp_path / "run", "average", "1,2,3,4,5,6,7,8")
    exporting = peak(tmp_path / "run", "export", tmp_path / "hf", SHARD)
    sizes = {
        "model": whole,
        "largest array": largest,
        "average of 2": two,
        "average of 8": eight,
        "export": exporting,
    }
    print({name: round(size / 1e6) for name, size in sizes.items()})
    assert abs(eight - two) < slack  # however many there are
    # Reading an array takes its stored bytes, TensorStore's copy, and the array.
    assert eight < whole + 3 * largest + slack
    # One array while the next is not yet read, and one file of weights.
    assert exporting < 2 * largest + SHARD + slack
    assert exporting < whole
