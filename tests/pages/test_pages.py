"""Records compared and laid out, and blocks as tables and pages."""

import io
import json
import re
import sys

import pytest
from rich.console import Console

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.pages import (
    MOST_POINTS,
    Cell,
    Curve,
    Note,
    Pictures,
    Table,
    before_and_after,
    change_notes,
    compare,
    curves,
    grid,
    human_bytes,
    human_time,
    page,
    stacked_bars,
    svg,
    terminal,
    write_record,
)
from gpt_pjit.pages.pictures import thinned

TABLE = Table("Title", ("name", ">n"), [("<a>", Cell("1", ("note", ""), "good"))])
CURVE = Curve("a & b", [1, 2, 3], [1.0, float("nan"), 9.0])
BLOCKS = [
    Note("a & b", "dim"),
    TABLE,
    Pictures("", [("caption", lambda: curves([CURVE], "x", "y"))]),
]


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ({"a": 1, "b": [1, 2]}, {"b": [1, 2], "a": 1}, []),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, [(("a", "b"), 1, 2)]),
        ({"a": [1, 2]}, {"a": [1, 3]}, [(("a",), [1, 2], [1, 3])]),
        ({"a": {"b": 1}}, {}, [(("a",), {"b": 1}, None)]),
        ({}, {"a": 0}, [(("a",), None, 0)]),
        ({"a": True}, {"a": False}, [(("a",), True, False)]),
        ({"a": True}, {"a": 1}, []),
    ],
)
def test_every_value_that_differs(before, after, changes):
    assert compare(before, after) == changes


@pytest.mark.parametrize(("after", "differs"), [(102, False), (98, False), (103, True), (97, True)])
def test_numbers_differ_beyond_the_tolerance(after, differs):
    assert bool(compare({"a": 100}, {"a": after}, 0.02)) == differs


def test_a_line_of_a_file_is_one_fact(tmp_path):
    record = {"short": {"a": [1, None], "b": "c"}, "long": {f"key {n}": n for n in range(30)}}
    write_record(tmp_path / "a.json", record)
    lines = (tmp_path / "a.json").read_text().splitlines()
    assert lines[1] == ' "short": {"a": [1, null], "b": "c"},'
    assert len(lines) == 35
    assert json.loads("".join(lines)) == record


def test_bytes_a_person_reads():
    sizes = (0, 1023, 2**20, 2**30 * 14.03, -(2**31))
    assert [*map(human_bytes, sizes)] == ["0 B", "1023 B", "1.00 MiB", "14.0 GiB", "-2.00 GiB"]


def test_many_steps_are_drawn_as_means_between_extremes():
    steps = range(2 * MOST_POINTS)
    x, y, least, most = thinned(steps, [step % 2 for step in steps])
    assert len(x) == MOST_POINTS
    assert (set(y), set(least), set(most)) == ({0.5}, {0}, {1})
    assert thinned(steps[:9], steps[:9]) == ([*steps[:9]],) * 4
    assert thinned([], []) == ([],) * 4


def test_durations_as_people_say_them():
    seconds = (0.04, 59.94, 250, 7500, 273600, 3599.9)
    said = ["0.0 s", "59.9 s", "4 min 10 s", "2 h 5 min", "3 d 4 h", "60 min 0 s"]
    assert [*map(human_time, seconds)] == said


def test_both_sides_and_their_change():
    (table,) = before_and_after("x", ({"a": 1, "b": 0}, {"a": 3, "b": None}), "{:.0f}".format)
    assert table.rows == [("a", "1", "3", "+2")]
    assert list(before_and_after("x", ({"a": 0}, {}))) == []
    notes = [note.text for note in change_notes([(("a", "b"), 100, 103), (("c",), None, 2)])]
    assert notes == ["a.b: 100 -> 103, +3.0%", "c: None -> 2"]


def test_blocks_in_a_terminal_have_no_pictures():
    console = Console(width=60, file=io.StringIO(), record=True)
    for renderable in terminal(BLOCKS):
        console.print(renderable, markup=False)
    text = console.export_text()
    assert re.search(r"<a> +1\s+note", text)
    assert "svg" not in text


def test_a_page_escapes_words_and_shows_pictures():
    text = page("<title>", BLOCKS)
    for words in ("&lt;title&gt;", "&lt;a&gt;", "a &amp; b", "<small>note</small>", "<svg "):
        assert words in text
    assert text.count("<small>") == 1


@pytest.mark.parametrize(
    "draw",
    [
        lambda: stacked_bars({"a & b": {"x": 1.0, "y": 2.0}}, "GiB", ("limit", 5.0)),
        lambda: curves([CURVE], "x", "y", "log", marks=[(2.0, 0)]),
        lambda: grid([[True, False], [True, True]], "device", "part"),
    ],
)
def test_pictures_follow_the_style_sheet(draw):
    text = svg(draw())
    assert text.startswith("<svg")
    assert "var(--c0)" in text
    assert set(re.findall(r"(?:fill|stroke): (#\w+)", text)) == set()
    assert text == svg(draw())


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        ConfigError, match=r"pages need matplotlib: pip install 'gpt_pjit\[pages\]'"
    ):
        page("x", [])
