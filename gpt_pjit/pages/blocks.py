"""The pieces that an answer is made of: sentences, tables, and pictures for pages."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import JustifyMethod, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from gpt_pjit.pages.records import Change, is_number

UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
# By name; any other style is one of rich's, and a class of the page's style sheet. `code` marks a
# piece of another text, which Markdown shows as it is.
STYLES = {"good": "green", "bad": "bold red", "warning": "yellow", "split": "cyan", "code": ""}


@dataclass(frozen=True)
class Cell:
    """One cell of a table: its text, in a style, and dimmed lines below it."""

    text: str
    notes: Sequence[str] = ()
    style: str = ""


@dataclass(frozen=True)
class Table:
    """Columns whose name starts with > are aligned to the right; a rule follows each tall row.

    One that is folded is on pages only, under its title.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    folded: bool = False


@dataclass(frozen=True)
class Note:
    """A sentence of its own, in a style."""

    text: str
    style: str = ""


@dataclass(frozen=True)
class Pictures:
    """Captions and what draws the figure under each, on pages only; those with a title fold."""

    title: str
    drawings: Sequence[tuple[str, Callable[[], Any]]]
    folded: bool = False


@dataclass(frozen=True)
class Choice:
    """Pictures that a reader of a page switches between, by name; at most four."""

    title: str
    options: Mapping[str, Pictures]


Block = Table | Note | Pictures | Choice


def human_bytes(n: float) -> str:
    """`2.16 GiB`: three digits or four."""
    for size, unit in UNITS:
        if abs(n) >= size:
            value = n / size
            return f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f} {unit}"
    return f"{n:.0f} B"


def human_time(seconds: float) -> str:
    """`3 d 4 h`, `2 h 5 min`, `4 min 10 s` or `8.1 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    sizes = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))
    large, name, small, other = next(size for size in sizes if seconds >= size[0])
    whole = round(seconds / small)
    return f"{whole * small // large} {name} {whole % (large // small)} {other}"


def terminal(blocks: Iterable[Block]) -> Iterator[RenderableType]:
    """The blocks for rich to print."""
    for block in blocks:
        if isinstance(block, Table) and not block.folded:
            yield _rich_table(block)
        elif isinstance(block, Note):
            style = STYLES.get(block.style, block.style)
            yield Text(block.text, style) if style else block.text


def markdown(blocks: Iterable[Block]) -> str:
    """The tables, under their titles, and the notes as a list."""
    lines = []
    for block in blocks:
        if isinstance(block, Table):
            lines += [f"## {block.title}", ""] if block.title else []
            names = [column.removeprefix(">") for column in block.columns]
            rules = ["---:" if column.startswith(">") else "---" for column in block.columns]
            rows = (map(_markdown_cell, row) for row in block.rows)
            lines += [f"| {' | '.join(row)} |" for row in (names, rules, *rows)]
            lines.append("")
        elif isinstance(block, Note):
            lines.append(f"- {block.text}")
    return "\n".join(lines).rstrip() + "\n"


def _markdown_cell(cell: str | Cell) -> str:
    text = cell if isinstance(cell, str) else " ".join((cell.text, *cell.notes))
    if isinstance(cell, Cell) and cell.style == "code":
        fence = "`"  # more backticks than it has in a row
        while fence in text:
            fence += "`"
        text = f"{fence} {text} {fence}" if "`" in text else f"`{text}`"
    return text.replace("|", "\\|")


def before_and_after(
    title: str,
    sides: tuple[Mapping[str, float | None], Mapping[str, float | None]],
    write: Callable[[float], str] = "{:,.3f}".format,
) -> Iterator[Table]:
    """A table of what both sides measure and its change; nothing where all of it is zero."""
    before, after = sides
    rows = []
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name) or 0, after.get(name) or 0
        if old or new:
            sign = "+" if new > old else ""
            rows.append((name, write(old), write(new), sign + write(new - old)))
    if rows:
        yield Table(title, ("", ">before", ">after", ">change"), rows)


def change_notes(changes: Iterable[Change]) -> Iterator[Note]:
    """`memory.peak_bytes: 100 -> 103, +3.0%`, for each difference between two records."""
    for path, before, after in changes:
        numbers = is_number(before) and is_number(after) and before
        ratio = f", {after / before - 1:+.1%}" if numbers else ""
        yield Note(f"{'.'.join(path)}: {before!r} -> {after!r}{ratio}")


def _rich_table(block: Table) -> RichTable:
    table = RichTable(
        title=block.title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in block.columns:
        justify: JustifyMethod = "right" if column.startswith(">") else "left"
        table.add_column(column.removeprefix(">"), justify=justify, overflow="fold")
    for row in block.rows:
        tall = any(isinstance(cell, Cell) and cell.notes for cell in row)
        table.add_row(*map(_rich_cell, row), end_section=tall)
    return table


def _rich_cell(cell: str | Cell) -> Text:
    if isinstance(cell, str):
        return Text(cell)
    notes = "".join(f"\n{note}" for note in cell.notes if note)
    return Text(cell.text, STYLES.get(cell.style, cell.style)) + Text(notes, "dim")
