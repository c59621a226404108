"""One look at runs: losses, speed, goodput, spikes, config, placement, plan, results and samples.

gpt_pjit report WORKDIR... [--html=FILE] [--png=FOLDER] [--live=30] [--serve=8000]

Several runs are drawn over each other. --html writes one page that loads nothing, and --png each
curve as a picture; without either, tables are shown. With --live the page is written again while
the runs go on, and reloads itself. --serve shows it on this machine, made anew for each visit.
"""

import argparse
import re
import time
from pathlib import Path

import jax

from gpt_pjit.commandline import Answer, Parser, any_path, comma_separated, local_path, positive
from gpt_pjit.core.console import say
from gpt_pjit.core.errors import EXIT_DONE, ConfigError
from gpt_pjit.core.files import file_errors, write_whole
from gpt_pjit.pages import LOOPBACK, Choice, Record, check_installed, page, png, serve, terminal
from gpt_pjit.report.record import report_record
from gpt_pjit.report.views import report_blocks

SECONDS = 30  # between two writings of a live page
PORT = 8000


def run(flags: argparse.Namespace) -> Answer:
    jax.config.update("jax_platforms", "cpu")  # placements need no device
    if flags.live and not (flags.html or flags.serve):
        raise ConfigError(["needs --html=FILE or --serve"], "--live")
    if flags.html or flags.serve or flags.png:
        check_installed("report")
    record, written = _read(flags), []
    if flags.serve:
        with serve(lambda: _page(flags, _read(flags)), flags.serve) as server:
            say(f"http://{LOOPBACK}:{flags.serve}/ until Ctrl-C")
            server.serve_forever()
    if flags.html:
        write_whole(flags.html, _page(flags, record))
        while flags.live and _goes_on(record):
            time.sleep(flags.live)
            record = _read(flags)
            write_whole(flags.html, _page(flags, record))
        written.append(f"wrote {flags.html}")
    if flags.png:
        written += [f"wrote {path}" for path in _write_pictures(record, flags.png)]
    return Answer(EXIT_DONE, record, written or terminal(report_blocks(record)))


def _read(flags: argparse.Namespace) -> Record:
    return report_record(flags.workdirs, flags.plan, flags.evaluation)


def _page(flags: argparse.Namespace, record: Record) -> str:
    reload_seconds = flags.live if _goes_on(record) else 0
    return page(", ".join(record["runs"]), report_blocks(record, pictures=True), reload_seconds)


def _goes_on(record: Record) -> bool:
    return not all(run["steps"]["finished"] for run in record["runs"].values())


def _write_pictures(record: Record, folder: Path) -> list[Path]:
    """A file for each curve over steps, named by what it shows."""
    with file_errors(f"--png={folder} cannot be written", "flags"):
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for block in report_blocks(record, pictures=True):
            if isinstance(block, Choice):
                for caption, draw in block.options["steps"].drawings:
                    name = re.sub(r"\W+", "_", caption.lower()).strip("_")
                    written.append(folder / f"{name}.png")
                    written[-1].write_bytes(png(draw()))
    return written


def define(parser: Parser) -> None:
    parser.set_defaults(run=run)
    add = parser.add_argument
    text = "of a run, local or in a bucket; several are compared"
    add("workdirs", nargs="+", type=any_path, metavar="WORKDIR", help=text)
    add("--html", type=local_path, metavar="FILE", help="write a page")
    add("--png", type=local_path, metavar="FOLDER", help="write each curve as a picture")
    text = f"write the page again every so many seconds, {SECONDS} unless given, until all runs end"
    add("--live", type=positive, nargs="?", const=SECONDS, metavar="SECONDS", help=text)
    text = f"show the page on this machine alone, at port {PORT} unless given"
    add("--serve", type=positive, nargs="?", const=PORT, metavar="PORT", help=text)
    text = "the record of a plan, to show beside what was measured"
    add("--plan", type=local_path, metavar="FILE", help=text)
    text = "comma-separated results of evaluate, beside those in the workdirs"
    add("--evaluation", type=_files, default=[], metavar="FILES", help=text)
    parser.add_json()


def _files(text: str) -> list[Path]:
    return [local_path(part) for part in comma_separated(text)]
