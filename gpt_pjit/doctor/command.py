"""Is this machine, or this pod, ready to train? A minute at most, and a remedy for each fault.

gpt_pjit doctor [--config=configs/580m.py] [--workdir=/shared/580m] [--json]

Run it as you run training: on every host of a pod, with the same launcher. It looks at devices,
versions, a stale TPU lock, clocks, disk, the workdir, the data and its rate, the network, a
collective, and one tiny step of the config. It trains nothing and leaves nothing behind. The exit
code is 0 if all is well, else 1.
"""

import argparse
import dataclasses
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from gpt_pjit.commandline import Answer, Parser, any_path, show
from gpt_pjit.config import Config, MeshConfig
from gpt_pjit.core.errors import EXIT_BROKEN, EXIT_DONE, HostFailedError
from gpt_pjit.core.runtime import ending_together, initialize_devices
from gpt_pjit.doctor import host, pod
from gpt_pjit.doctor.findings import Finding, examine, of_all
from gpt_pjit.pages import Cell, Note, Table, terminal

SECONDS = 55.0  # until a check that hangs is named, and the command ends
SECONDS_TO_MEET = 20.0
MORE = "give --config=FILE to check its data and checkpoints and run one small step"
DEVICES_REMEDY = "restart that host; if that does not help, replace it"


class Checkup:
    def __init__(self, flags: argparse.Namespace):
        self._flags, self._findings, self._running = flags, list[Finding](), ""

    def alone(self, check: str, function: Callable[..., str], *arguments: Any) -> Finding:
        """A check before the hosts have met."""
        self._running = check
        self._findings.append(examine(check, function, *arguments))
        return self._findings[-1]

    def on_all(
        self, check: str, function: Callable[..., str], *arguments: Any, if_different: str = ""
    ) -> bool:
        """A check on every host; whether it is good on all."""
        self._running = check
        found = of_all(examine(check, function, *arguments), if_different)
        self._findings.extend(found)
        return all(finding.good for finding in found)

    def answer(self) -> Answer:
        code = EXIT_DONE if all(finding.good for finding in self._findings) else EXIT_BROKEN
        return Answer(code, list(map(dataclasses.asdict, self._findings)), terminal(self._blocks()))

    def give_up(self) -> None:
        """Shows what there is, and ends the process: a check hangs, perhaps inside a device."""
        found = f"not finished {SECONDS:.0f} seconds after the start"
        remedy = "check that all hosts are running, and end other processes that use their devices"
        self._findings.append(Finding(self._running, False, found, remedy))
        self.show()
        os._exit(EXIT_BROKEN)

    def show(self) -> None:
        answer = self.answer()
        show(answer.record, answer.shown, as_json=self._flags.json)
        sys.stdout.flush()

    def _blocks(self) -> list[Table | Note]:
        rows = []
        for finding in self._findings:
            who = ", ".join(map(str, finding.processes))
            where = f"process{'es' if len(finding.processes) > 1 else ''} {who}: " if who else ""
            notes = (f"remedy: {finding.remedy}",) if finding.remedy else ()
            sign = Cell("ok", style="good") if finding.good else Cell("fault", style="bad")
            rows.append((finding.check, sign, Cell(f"{where}{finding.found}", notes)))
        blocks: list[Table | Note] = [Table("", ("check", "", "found"), rows)]
        if self._flags.config.path is None:
            blocks.append(Note(MORE))
        return blocks


def run(flags: argparse.Namespace) -> Answer | int:
    config = flags.config.read() if flags.config.path else None
    checkup = Checkup(flags)
    watch = threading.Timer(SECONDS, checkup.give_up)
    watch.daemon = True
    watch.start()
    with ending_together():
        checkup.alone("TPU lock", host.tpu_lock)
        hosts = checkup.alone("hosts", _meet, config, flags.distributed)
        if not hosts.good:
            checkup.show()
            raise HostFailedError(hosts.found, EXIT_BROKEN)
        _examine(checkup, config, flags)
    watch.cancel()
    answer = checkup.answer()
    return answer.code if jax.process_index() else answer


def _meet(config: Config | None, distributed: bool) -> str:
    mesh, rows = MeshConfig(), None
    if config:
        mesh, rows = config.mesh, config.data.batch_size // config.optim.microbatches
    initialize_devices(mesh, rows, distributed=distributed, limit=SECONDS_TO_MEET)
    return f"{jax.process_count()} of {jax.process_count()} joined"


def _examine(checkup: Checkup, config: Config | None, flags: argparse.Namespace) -> None:
    folder = flags.workdir or Path("runs") / (flags.config.stem or "doctor")
    several = jax.process_count() > 1
    checkup.on_all("devices", host.devices, if_different=DEVICES_REMEDY)
    checkup.on_all("versions", pod.versions)
    if several:
        checkup.on_all("clocks", pod.clocks)
        checkup.on_all("latency", pod.latency)
    checkup.on_all("disk", host.disk, config, folder)
    checkup.on_all("workdir", pod.workdir, folder)
    if config:
        checkup.on_all("data", host.data, config, folder)
    if checkup.on_all("collective", pod.collective) and config:
        checkup.on_all("step", pod.step, config, if_different=pod.STEP_REMEDY)


def define(parser: Parser) -> None:
    parser.add_config()
    parser.add_argument(
        "--workdir", type=any_path, help="the run's folder; default runs/<config name>"
    )
    parser.add_distributed()
    parser.add_json()
    parser.set_defaults(run=run)
