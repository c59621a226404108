"""Results beside others: what can be compared, and files that are damaged."""

import copy
import json

import pytest

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.evaluate.report import (
    comparisons,
    from_record,
    read_results,
    report,
    results_table,
    value_text,
)
from gpt_pjit.pages import markdown


def record(name="mine", **details):
    """Of two tasks, one with `details`."""
    sound = {"window": 1024, "stride": 512, "bytes": 1, "data": {"sha256": "ab"}}
    tasks = {"text8": sound | details, "piqa": {"window": 32, "num_fewshot": 0, "items": 1}}
    settings = {"name": name, "step": 1, "checkpoint": "c", "dtype": "float32", "tasks": tasks}
    metrics = {"bits_per_byte": 1.0, "bits_per_byte_stderr": None, "loss_share_above_20": 0.0}
    return {"text8": metrics, "piqa": {"acc": 1, "acc_stderr": 0.5}, "settings": settings}


def test_results_of_another_window_or_text_cannot_be_compared(tmp_path):
    paths = []
    for number, other in enumerate(({}, {"stride": 1024}, {"data": {"sha256": "cd"}})):
        paths.append(str(tmp_path / f"{number}.json"))
        (tmp_path / f"{number}.json").write_text(json.dumps(record(f"other{number}", **other)))
    mine = from_record(record())
    blocks = report(mine, comparisons(paths, ["text8"]))
    assert [block.text for block in blocks if getattr(block, "style", "") == "bad"] == [
        f"WARNING, text8: other1 of {paths[1]} cannot be compared: stride 1,024, here 512",
        f"WARNING, text8: other2 of {paths[2]} cannot be compared: other data",
    ]


def test_published_models_stand_beside_and_are_marked():
    names = [model.name for model in comparisons(["published"], ["enwik8"])]
    assert names == ["GPT-580M", "GPT2-Medium (paper)", "GPT2-Large (paper)"]
    others = comparisons(["published"], ["piqa"])
    mine = from_record(record())
    table, *_, last = report(mine, others)
    published = (f"{name} (published)" for name in ("GPT2-Medium", "GPT-580M", "GPT2-Large"))
    assert table.columns == ("task", "metric", "mine", *published)
    assert table.rows == [
        ("text8", "bits_per_byte", "1.0000", "1.1024", "1.1330", "1.0543"),
        ("piqa", "acc", "100.00 ± 50.00 %", "67.60 %", "66.80 %", "70.30 %"),
    ]
    assert "training log of the 580M run" in last.text
    assert comparisons(["published"], ["winogrande"]) == []
    with pytest.raises(ConfigError, match=r"publised cannot be read: No such file"):
        comparisons(["published", "publised"], ["piqa"])


def test_few_shot_metrics_of_a_filter_are_shares_too():
    metrics = {"exact_match,strict": 0.25, "exact_match,strict_stderr": 0.5, "f1": 0.25}
    assert value_text(metrics, "exact_match,strict") == "25.00 ± 50.00 %"
    assert value_text(metrics, "f1") == "0.2500"


def test_pieces_of_text_are_code_in_markdown():
    worst = [{"nll": 1.0, "text": text, "before": ""} for text in ("<b>|*", "a `` b")]
    shown = markdown(report(from_record(record(worst_tokens=worst)), []))
    assert "## text8: worst tokens\n\n| nats | token | after |\n" in shown
    assert "| `'<b>\\|*'` |" in shown
    assert "| ``` 'a `` b' ``` |" in shown


def places(value, before=()):
    """The path to every part of a JSON value."""
    yield before
    for key in value if isinstance(value, dict) else ():
        yield from places(value[key], (*before, key))


def put(value, path, new):
    if not path:
        return new
    changed = copy.copy(value)
    changed[path[0]] = put(value[path[0]], path[1:], new)
    return changed


DAMAGED = [
    *(json.dumps(record())[:-cut] for cut in (1, 40, 200)),
    "",
    "[" * 1100 + "]" * 1100,
    '{"settings": ' * 1100 + "1" + "}" * 1100,
    "caf\xe9".encode("latin-1"),
    json.dumps(record()).replace('"step": 1', f'"step": {"9" * 5000}'),
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_one_sentence(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=r"has 1 problem:\n.*results\.json is damaged"):
        comparisons([str(tmp_path)], ["piqa"])


def test_any_part_of_another_type_is_refused_or_shown(tmp_path):
    """Whatever stands in a file, it is compared or refused, never a traceback."""
    path, refused = tmp_path / "results.json", 0
    for place in places(record()):
        for wrong in (None, [], {}, "x", True, 1.5, 10**400, [1] * 3):
            path.write_text(json.dumps(put(record(), place, wrong)))
            try:
                (other,) = comparisons([str(path)], ["piqa"])
            except ConfigError:
                refused += 1
                continue
            assert report(from_record(record()), [other])
            assert results_table(other)
    assert refused > 40
    path.write_text(json.dumps(record()))
    assert read_results(path) == read_results(tmp_path)
