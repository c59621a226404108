"""From the command to the first step: a quickstart that resumes, with its programs and without.

python -m tests.benchmarks.starting [--turns=5]
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.helpers import ROOT


def start(workdir: Path, home: Path) -> tuple[float, float]:
    """Seconds until the first step is logged, by the clock and of the processor."""
    command = [sys.executable, "-m", "gpt_pjit.main", "--config=configs/quickstart.py"]
    environment = os.environ | {"XDG_CACHE_HOME": str(home)}
    log = workdir / "metrics.jsonl"
    before = len(log.read_text().splitlines()) if log.exists() else 0
    begin = time.perf_counter()
    with subprocess.Popen(
        [*command, f"--workdir={workdir}", "--config.log.every=1"],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        while not log.exists() or len(log.read_text().splitlines()) <= before:
            time.sleep(0.01)
        clock = time.perf_counter() - begin
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        processor = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        process.send_signal(signal.SIGTERM)  # it saves, so that the next start resumes
        process.communicate()
    return clock, processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    turns = parser.parse_args().turns
    with tempfile.TemporaryDirectory() as folder:
        workdir, warm = Path(folder) / "run", Path(folder) / "warm"
        start(workdir, warm)  # tokenises
        start(workdir, warm)  # compiles what a resume needs
        found: dict[str, list[tuple[float, float]]] = {"compiles": [], "finds its programs": []}
        for turn in range(turns):
            found["compiles"].append(start(workdir, Path(folder) / f"cold{turn}"))
            found["finds its programs"].append(start(workdir, warm))
    for name, pairs in found.items():
        for kind, seconds in zip(("clock", "processor"), zip(*pairs, strict=True), strict=True):
            median = statistics.median(seconds)
            print(f"{name}: {median:.2f} s by the {kind} ({min(seconds):.2f}-{max(seconds):.2f})")


if __name__ == "__main__":
    main()
