"""Traces of steps by JAX's profiler, in `WORKDIR/profile/STEP`, which is the first of them.

Process 0 traces the steps of `--profile`; any process that receives SIGUSR1 its next ones.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import jax

from gpt_pjit.core.console import say, warn
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.files import Mirror

STEPS_BY_SIGNAL = 3
Pause = Callable[[str, int], AbstractContextManager[None]]  # StepLog.pause


class Profiler:
    """`steps` are those to trace; `pause` waits for those under way, and is not training time."""

    def __init__(self, workdir: Path, steps: range, pause: Pause):
        self._workdir, self._pause = workdir, pause
        self._steps = steps if jax.process_index() == 0 else range(0)
        self._mirror: Mirror | None = None  # of the trace under way

    def before(self, step: int, asked: bool) -> None:
        """Call before each step; `asked` if a signal wants the next ones."""
        if self._mirror and step not in self._steps:
            self.finish(step - 1)
        elif asked and not self._mirror:
            self._steps = range(step, step + STEPS_BY_SIGNAL)
        if step in self._steps and not self._mirror:
            with self._pause("profile", step - 1):
                self._start(step)

    def finish(self, step: int) -> None:
        """Ends the trace under way, if there is one, after `step`."""
        if self._mirror:
            with self._pause("profile", step):
                self._stop(self._mirror, step)

    def _start(self, step: int) -> None:
        process = jax.process_index()
        name = f"{step}.process{process}" if process else str(step)
        mirror = Mirror(self._workdir / "profile" / name)
        try:
            jax.profiler.start_trace(mirror.folder)
        except (OSError, RuntimeError) as error:  # or another program traces this process
            self._steps = range(0)
            warn(f"no profile: {error}")
        else:
            self._mirror = mirror

    def _stop(self, mirror: Mirror, last: int) -> None:
        self._mirror = None
        try:
            jax.profiler.stop_trace()
            mirror.close()
        except (OSError, ConfigError, RuntimeError) as error:
            warn(f"the profile is lost: {error}")
        else:
            say(f"profile of the steps up to {last} is in {self._workdir}/profile")
