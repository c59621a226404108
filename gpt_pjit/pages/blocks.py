"""The pieces that an answer is made of: sentences, tables, and pictures for pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import JustifyMethod, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from gpt_pjit.pages.records import Change

UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
STYLES = {
    "good": "green",
    "bad": "bold red",
    "warning": "yellow",
    "split": "cyan",
    "strong": "bold",
    "dim": "dim",
    "code": "",  # pieces of other texts, which Markdown shows as they are
    "": "",
}


@dataclass(frozen=True)
class Cell:
    """One cell of a table: its text, in a style of `STYLES`, and dimmed lines below it."""

    text: str
    notes: Sequence[str] = ()
    style: str = ""


@dataclass(frozen=True)
class Table:
    """Columns whose name starts with > are aligned to the right; a rule follows each tall row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class Note:
    """A sentence of its own, in a style of `STYLES`."""

    text: str
    style: str = ""
    kind: str = field(default="note", init=False)


@dataclass(frozen=True)
class Pictures:
    """Captions and what draws the SVG under each, side by side; shown on pages alone.

    With a title they fold at a click, and are `folded` at first or not.
    """

    title: str
    drawings: Sequence[tuple[str, Callable[[], str]]]
    folded: bool = False
    kind: str = field(default="pictures", init=False)


Block = Table | Note | Pictures


def human_bytes(n: float) -> str:
    """`2.16 GiB`: three digits or four."""
    for size, unit in UNITS:
        if abs(n) >= size:
            value = n / size
            return f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f} {unit}"
    return f"{n:.0f} B"


def terminal(blocks: Iterable[Block]) -> Iterator[RenderableType]:
    """The blocks for rich to print."""
    for block in blocks:
        if isinstance(block, Table):
            yield _rich_table(block)
        elif isinstance(block, Note):
            yield Text(block.text, STYLES[block.style]) if block.style else block.text


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


def changes_table(changes: Iterable[Change]) -> Table:
    """Differences between two records as they are, whatever they are about."""
    rows = []
    for path, before, after in changes:
        numbers = isinstance(before, int | float) and isinstance(after, int | float)
        ratio = f"{after / before - 1:+.1%}" if numbers and before else ""
        rows.append((".".join(path), _value(before), _value(after), ratio))
    return Table("What differs", ("", "before", "after", ">change"), rows)


def _value(value: object) -> str:
    if value is None:
        return "none"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:,}" if is_number else str(value)


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
    return Text(cell.text, STYLES[cell.style]) + Text(
        "".join(f"\n{n}" for n in cell.notes if n), "dim"
    )
