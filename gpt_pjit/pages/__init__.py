"""What tools give back: records kept in files and compared, shown as tables and as pages.

A record is the JSON object that a command prints with --json. A tool turns it into blocks, which
`terminal` shows to a person and `page` writes as one HTML file.
"""

from gpt_pjit.pages.blocks import (
    Block,
    Cell,
    Choice,
    Note,
    Pictures,
    Table,
    before_and_after,
    change_notes,
    human_bytes,
    human_time,
    markdown,
    terminal,
)
from gpt_pjit.pages.page import check_installed, page, png, svg
from gpt_pjit.pages.pictures import MOST_POINTS, Curve, curves, grid, lines, stacked_bars
from gpt_pjit.pages.records import Change, Record, compare, is_number, read_record, write_record
from gpt_pjit.pages.serving import LOOPBACK, serve
