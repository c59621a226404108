import json
import subprocess
import sys
import time

import pytest

from gpt_pjit.core.runtime import Timeline
from gpt_pjit.report.lines import goodput, read_timeline


def line(start, what, at, seconds, before, after, **more):
    line = {"at": at, "seconds": seconds, "what": what, "start": start}
    return line | {"from": before, "to": after} | more


# The first start is killed after step 30, saved at 20; the second after a prepare alone; the third
# redoes from 20.
TWO_KILLS = [
    line(1, "prepare", 110, 10, 0, 0),
    line(1, "restore", 112, 2, 0, 0),
    line(1, "compile", 117, 5, 0, 1),
    line(1, "steps", 136, 19, 1, 20, data=1.0),
    line(1, "save", 140, 4, 20, 20),
    line(1, "steps", 148, 8, 20, 30, data=2.0),
    line(2, "prepare", 170, 12, 20, 20),
    line(3, "prepare", 190, 10, 20, 20),
    line(3, "compile", 196, 6, 20, 21),
    line(3, "steps", 215, 19, 21, 40, data=0.5),
    line(3, "validation", 216, 1, 40, 40),
    line(3, "end", 217, 1, 40, 40),
]


def test_goodput_attributes_every_second_of_the_wall():
    found = goodput(TWO_KILLS)
    assert found["wall"] == pytest.approx(217 - 100)
    assert found == {
        "wall": 117,
        "useful": 18 + 18.5,
        "redone": 8,
        "data": 1.5,
        "down": 10 + 10,
        "prepare": 32,
        "restore": 2,
        "compile": 11,
        "save": 4,
        "validation": 1,
        "end": 1,
    }


def test_steps_that_were_redone_in_part_count_in_part():
    lines = [line(1, "steps", 110, 10, 0, 10, data=4.0), line(2, "compile", 120, 5, 8, 9)]
    found = goodput(lines)
    assert found["redone"] == pytest.approx(2)
    assert found["data"] == pytest.approx(0.8 * 4)
    assert found["useful"] == pytest.approx(0.8 * 6)


def test_spans_follow_each_other_from_the_start_of_the_process_on():
    timeline, written = Timeline(), []
    began = timeline.end("prepare")
    timeline.open(2, 7, written.append)
    time.sleep(0.2)
    timeline.end("steps", 9, data=0.5)
    timeline.end("save")
    assert [(one["what"], one["start"], one["from"], one["to"]) for one in written] == [
        ("prepare", 2, 7, 7),
        ("steps", 2, 7, 9),
        ("save", 2, 9, 9),
    ]
    assert written[1]["data"] == 0.5
    assert 0 < began["seconds"] < time.time()  # the process is younger than the epoch
    total = sum(one["seconds"] for one in written)
    assert written[-1]["at"] - (began["at"] - began["seconds"]) == pytest.approx(total, abs=0.01)


def test_a_process_knows_its_age():
    code = "import time; from gpt_pjit.core.runtime.timeline import age; print(time.time() - age())"
    before = time.time()
    born = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert before - 0.05 < float(born.stdout) < before + 1


def test_a_line_cut_short_is_left_out(tmp_path):
    assert read_timeline(tmp_path) == []
    text = json.dumps(TWO_KILLS[0]) + "\n" + '{"at": 1, "sec\n' + json.dumps(TWO_KILLS[1]) + "\n"
    (tmp_path / "timeline.jsonl").write_text(text)
    assert read_timeline(tmp_path) == TWO_KILLS[:2]
