"""Which items of a corpus one of several processes tokenises, and where it puts them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Share:
    """Part `number`, from 1, of `of` equal ranges of a corpus's bytes, in the order of its files.

    An item belongs to the range in which it begins, so the parts one after another hold every item
    once and in order, and a large file may lie in several of them.
    """

    number: int = 1
    of: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def is_whole(self) -> bool:
        return self.of == 1

    def folder(self, out: Path) -> Path:
        """Where this part of the set `out` is written."""
        number = str(self.number).zfill(len(str(self.of)))
        return parts_folder(out) / f"{number}-of-{self.of}"

    def ranges(self, sizes: Sequence[int]) -> list[range]:
        """For each file, given its bytes: at which of them the items of this share begin.

        What an empty file holds begins at its byte 0.
        """
        total = max(sum(sizes), 1)
        start, stop = (-(-n * total // self.of) for n in (self.number - 1, self.number))
        found, before = [], 0
        for size in sizes:
            at = min(before, total - 1)  # an empty file at the end belongs to the last part
            found.append(range(max(start - at, 0), min(stop - at, max(size, 1))))
            before += size
        return found


WHOLE = Share()


def parts_folder(out: Path) -> Path:
    """The folder of all parts of the set `out`."""
    return out.with_name(f"{out.name}.parts")
