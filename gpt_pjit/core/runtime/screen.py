"""What a terminal shows of a run beneath its bar: the newest of each number, as cells."""

import math
import statistics
import time
from collections import deque
from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
TREND = 12  # means of the loss over a log interval


class Cells:
    """Hears of the metrics of each step; calling it returns the cells, by name."""

    def __init__(self, every: int, start: int):
        self._every = every
        self._losses: deque[float] = deque(maxlen=TREND * every)
        self._newest: dict[str, float] = {}
        self._best = math.inf  # validation loss
        self._skipped, self._saved = 0, (start, 0.0)

    def hear(self, metrics: dict[str, float]) -> None:
        """Metrics of a step, whether or not they are logged."""
        self._newest |= metrics
        self._skipped += "train/skipped" in metrics
        if math.isfinite(loss := metrics.get("train/loss", math.nan)):
            self._losses.append(loss)
        self._best = min(self._best, metrics.get("validation/loss", math.inf))

    def saved(self, step: int) -> None:
        """The checkpoint of `step` is whole."""
        self._saved = step, time.monotonic()

    def __call__(self) -> dict[str, str]:
        shown = {
            "loss": f"{self._of('train/loss', '{:.4f}')} {trend(self._losses, self._every)}",
            "validation": self._of("validation/loss", f"{{:.4f}}, best {self._best:.4f}"),
            "learning rate": self._of("train/learning_rate", "{:.2e}"),
            "gradient norm": self._of("train/grad_norm", "{:.3g}"),
            "tokens/s": self._of("throughput/tokens_per_second", "{:,.0f}"),
            "MFU": self._of("throughput/mfu", "{:.1%}"),
            "step time": self._of("time/step", "{:.3g} s"),
            "data wait": self._of("throughput/data_wait", "{:.1%}"),
            "checkpoint": self._checkpoint(),
            "skipped": f"{self._skipped} steps",
        }
        if planned := self._newest.get("time/plan"):
            shown["step time"] += f", plan {self._newest['time/step'] / planned - 1:+.0%}"
        if "throughput/mfu" not in self._newest:
            del shown["MFU"]
        return shown

    def _of(self, name: str, form: str) -> str:
        return form.format(self._newest[name]) if name in self._newest else "-"

    def _checkpoint(self) -> str:
        step, at = self._saved
        if not at:  # of an earlier start, or none
            return f"{step:,}" if step else "-"
        seconds = time.monotonic() - at
        age = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
        return f"{step:,}, {age} ago"


def trend(values: Sequence[float], every: int) -> str:
    """The means of each `every` values, as a line of blocks from the lowest to the highest."""
    listed = list(values)
    means = [statistics.fmean(listed[at : at + every]) for at in range(0, len(listed), every)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    scale = (len(BLOCKS) - 1) / (high - low or 1.0)
    return "".join(BLOCKS[round((mean - low) * scale)] for mean in means)
