"""A command in a process of its own that has little memory and time, and may do little."""

import multiprocessing
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax

from gpt_pjit.__main__ import COMMANDS, main

for module, _ in COMMANDS.values():  # once, not in every process
    __import__(module)

MEMORY = 4 * 2**30  # of addresses; JAX itself takes 2 GiB
CPU_SECONDS = 20
SECONDS = 120  # that a busy machine may take; reading a pipe takes for ever
FORBIDDEN = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "socket.connect")


class Ended(NamedTuple):
    code: int
    message: str


def run(*argv: object, only_in: Path) -> Ended:
    """`gpt_pjit ARGV`, which may write in one folder only.

    Its process is forked off one that has imported everything and started no device.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with tempfile.NamedTemporaryFile() as log:
        process = context.Process(target=_command, args=([*map(str, argv)], log.name, only_in))
        process.start()
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
            return Ended(-1, f"hangs: {Path(log.name).read_text(errors='replace')}")
        return Ended(process.exitcode, Path(log.name).read_text(errors="replace"))


def _command(argv: list[str], log: str, only_in: Path) -> None:
    output = os.open(log, os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ["JAX_NUM_CPU_DEVICES"] = "1"
    jax.config.update("jax_num_cpu_devices", 1)
    jax.config.update("jax_enable_compilation_cache", False)  # whose folder is elsewhere
    limits = {"AS": MEMORY, "CPU": CPU_SECONDS, "CORE": 0}
    for name, most in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))

    def audit(event: str, arguments: tuple) -> None:
        if event in FORBIDDEN or (event == "open" and _writes(*arguments, only_in)):
            os.write(2, f"FORBIDDEN {event} {arguments}\n".encode())
            os._exit(99)

    sys.addaudithook(audit)
    main(argv)


def _writes(path: object, mode: object, flags: int, only_in: Path) -> bool:
    if not flags & (os.O_WRONLY | os.O_RDWR) or not isinstance(path, str | Path):
        return False
    return not Path(os.path.abspath(path)).is_relative_to(only_in) and str(path) != os.devnull
