"""The files of lines that a run writes, read, and what those of its timeline add up to."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from gpt_pjit.core.files import file_errors, read_regular
from gpt_pjit.pages import Record

LARGEST_LINES = 2**30  # bytes of a file of lines


def json_lines(path: Path) -> tuple[list[Record], int]:
    """The objects in a file, and how many lines hold none; one still being written is no line."""
    if not path.exists():
        return [], 0
    with file_errors(f"{path} cannot be read", str(path.parent)):
        text = read_regular(path, LARGEST_LINES).decode("utf-8", errors="replace")
    found, damaged = [], 0
    for line in text.split("\n")[:-1]:
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            found.append(value)
        else:
            damaged += bool(line.strip())
    return found, damaged


def read_timeline(workdir: Path) -> list[Record]:
    """The lines of a run, but for one cut short by a kill; none in a run that has none yet."""
    return json_lines(workdir / "timeline.jsonl")[0]


def goodput(lines: Sequence[Record]) -> dict[str, float]:
    """Seconds by name, which add up to those of `wall`, from the first start to the last line.

    `useful` are those of steps that were not done again, without waiting for `data`; `redone` those
    of steps that were; `down` those between the last line of a start and the next start, in which a
    kill may have lost up to a log interval. The others are named as in a line.
    """
    found = dict.fromkeys(("useful", "redone", "data", "down"), 0.0)
    starts = [list(group) for _, group in itertools.groupby(lines, lambda line: line["start"])]
    for number, own in enumerate(starts):
        kept = min((later[0]["from"] for later in starts[number + 1 :]), default=own[-1]["to"])
        if number:
            begin = own[0]["at"] - own[0]["seconds"]
            found["down"] += max(begin - starts[number - 1][-1]["at"], 0.0)
        for line in own:
            what, seconds = line["what"], line["seconds"]
            if what != "steps":
                found[what] = found.get(what, 0.0) + seconds
                continue
            steps = line["to"] - line["from"]
            again = max(line["to"] - max(line["from"], kept), 0) / steps
            found["redone"] += again * seconds
            found["data"] += (1 - again) * line["data"]
            found["useful"] += (1 - again) * (seconds - line["data"])
    return {"wall": sum(found.values())} | found
