"""What tools give back: records kept in files and compared, shown as tables and as pages.

A record is the JSON object that a command prints with --json. A tool turns it into blocks, which
`terminal` shows to a person and `page` writes as one HTML file.
"""

from gpt_pjit.pages.blocks import (
    Block as Block,
    Cell as Cell,
    Note as Note,
    Pictures as Pictures,
    Table as Table,
    before_and_after as before_and_after,
    change_notes as change_notes,
    human_bytes as human_bytes,
    markdown as markdown,
    terminal as terminal,
)
from gpt_pjit.pages.page import (
    grid as grid,
    lines as lines,
    page as page,
    stacked_bars as stacked_bars,
)
from gpt_pjit.pages.records import (
    Change as Change,
    Record as Record,
    compare as compare,
    read_record as read_record,
    write_record as write_record,
)
