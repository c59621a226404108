"""docs/plan.md names what there is."""

import re

from gpt_pjit.plan.plan import PROMISES
from tests.helpers import ROOT

PAGE = (ROOT / "docs" / "plan.md").read_text()


def test_every_promise_stands_with_its_layouts():
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    for name in {name for names in PROMISES.values() for name in names}:
        (row,) = [line for line in rows if line.startswith(f"| `{name}`")]
        holders = [layout for layout, names in PROMISES.items() if name in names]
        told = row.rsplit("|", 2)[1].replace("`", "").split()
        assert told == (["all"] if len(holders) == len(PROMISES) else holders)


def test_every_key_of_json(small, plan_on_cpu):
    record = plan_on_cpu(small).record
    keys = {*record, *record["memory"], *record["cost"], *record["collectives"][0]}
    assert {key for key in keys if not re.search(rf"\b{key}[`.]", PAGE)} == set()
