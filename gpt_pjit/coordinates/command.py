"""Does what is tuned at one width hold at another? Trains a few steps at each, on this CPU.

gpt_pjit coordinates --config=configs/mup.py [--widths=128,256,512] [--steps=5] [--html=FILE]

The config takes the width as its argument, as in --config=configs/mup.py:256. Shown is how much
each activation changes in these steps, with the config's tables and factors for widths and without.
The exit code is 0 where all are flat with them, else 1. Takes overrides and --json.
"""

import argparse
import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax

from gpt_pjit.commandline import Answer, Parser, comma_separated, positive, write_page
from gpt_pjit.config import replaced
from gpt_pjit.coordinates.check import FLAT, WITHOUT, measure, slopes
from gpt_pjit.core.console import Progress
from gpt_pjit.core.errors import EXIT_BROKEN, EXIT_DONE, ConfigError
from gpt_pjit.pages import Block, Cell, Note, Pictures, Table, lines, page, terminal

SIDES = {"with": {}, "without": WITHOUT}
Record = dict[str, Any]


def run(flags: argparse.Namespace) -> Answer:
    jax.config.update("jax_platforms", "cpu")
    widths = sorted(flags.widths)
    if len(widths) < 2:
        raise ConfigError(["needs two widths or more"], "--widths")
    path = flags.config.path
    read = {
        width: dataclasses.replace(flags.config, path=path and f"{path}:{width}").read()
        for width in widths
    }
    record: Record = {"steps": flags.steps}
    with Progress("training", 2 * len(widths)) as progress:
        for side, fields in SIDES.items():
            found = {}
            for width, config in read.items():
                found[width] = measure(replaced(config, fields), flags.steps)
                progress.update(len(record.get("with", {})) + len(found))
            record[side] = found
    record["slopes"] = {side: slopes(record[side]) for side in SIDES}
    record["flat"] = all(abs(slope) < FLAT for slope in record["slopes"]["with"].values())
    code = EXIT_DONE if record["flat"] else EXIT_BROKEN
    if flags.html:
        write_page(flags.html, page(f"{path} by width", blocks(record)))
        return Answer(code, record, [f"wrote {flags.html}"])
    return Answer(code, record, terminal(blocks(record)))


def blocks(record: Record) -> Iterator[Block]:
    drawings = []
    for side in SIDES:
        found, slope = record[side], record["slopes"][side]
        rows = []
        for kind in slope:
            style = "good" if abs(slope[kind]) < FLAT else "bad"
            figures = (f"{found[width][kind]:.4f}" for width in found)
            rows.append((kind, *figures, Cell(f"{slope[kind]:+.2f}", style=style)))
        title = f"{side} the tables: mean change after {record['steps']} steps, by width"
        yield Table(title, ("", *(f">{width}" for width in found), ">power of width"), rows)
        series = {kind: [found[width][kind] for width in found] for kind in slope}
        drawings.append((title, partial(lines, list(found), series, "width", "mean change")))
    yield Pictures("Activations by width", drawings)
    flat = "all are flat" if record["flat"] else "not all are flat"
    yield Note(f"with the tables {flat}: powers of the width within +-{FLAT}")


def _widths(text: str) -> list[int]:
    return list(map(positive, comma_separated(text)))


def define(parser: Parser) -> None:
    parser.set_defaults(run=run)
    parser.add_config(help="a file of configs/ that takes a width")
    add = parser.add_argument
    add("--widths", type=_widths, default=[128, 256, 512], help="comma-separated; d_model of each")
    add("--steps", type=positive, default=5, help="training steps at each width")
    add("--html", metavar="FILE", help="write a page with pictures")
    parser.add_json()
