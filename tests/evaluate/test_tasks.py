"""Names to tasks: the published texts, files, and what is wrong with them."""

import hashlib
import importlib.util
from pathlib import Path

import pytest

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.evaluate import tasks
from gpt_pjit.evaluate.harness import Options
from gpt_pjit.evaluate.scorer import Scorer
from gpt_pjit.evaluate.tasks import decoded, last, pages, prepare_tasks

TEXT = "Dass es regnet, wei\N{LATIN SMALL LETTER SHARP S} man; why, nobody knows.\n"


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is here")
def test_without_lm_eval_one_message_names_it():
    with pytest.raises(ConfigError, match=r"1 problem:\n  piqa, mmlu need lm-eval: pip .*\[eval\]"):
        prepare_tasks(["piqa", f"file:{__file__}", "mmlu"], Options())


def test_a_published_text_is_its_end_and_known_by_its_hash(tmp_path, monkeypatch, trained):
    monkeypatch.setattr(tasks, "TEST_BYTES", 40)
    (tmp_path / "text8").mkdir()
    (tmp_path / "text8" / "text8").write_text(TEXT * 3)
    words = r"text8: .*/text8/text8 has md5 .*, the published file 3bea.*; file:.* scores it"
    with pytest.raises(ConfigError, match=words):
        prepare_tasks(["text8"], Options(tmp_path))
    digest = hashlib.md5((TEXT * 3).encode(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(tasks.TEXTS, "text8", ("text8", f"md5:{digest}"))
    result = prepare_tasks(["text8"], Options(tmp_path))["text8"](Scorer(trained), 32)()["text8"]
    assert result.details["bytes"] == 40
    assert result.details["data"]["checked"]
    with pytest.raises(ConfigError, match="3 problems") as error:
        prepare_tasks(["enwik8", "file:nothing.txt", "lengths:piqa"], Options(tmp_path))
    assert "enwik8: there is no " in str(error.value)
    assert "nothing.txt cannot be read: No such file" in str(error.value)
    assert "lengths:piqa: lengths: takes wikitext2, text8" in str(error.value)
    with pytest.raises(ConfigError, match="--data_dir=nowhere is not a folder"):
        prepare_tasks(["text8"], Options(Path("nowhere")))
    with pytest.raises(ConfigError, match="text8 needs its published file text8; give its --data"):
        prepare_tasks(["text8"], Options())


def test_the_end_of_a_file_begins_with_a_whole_character():
    content = TEXT.encode() * 2
    sharp_s = content.index(b"\xc3")
    assert last(content, len(content) - sharp_s) == content[sharp_s:]
    assert last(content, len(content) - sharp_s - 1) == content[sharp_s + 2 :]
    assert last(content, 1000) == content
    assert last(b"\x93", 5) == b"\x93"  # nothing is cut here, and nothing lost unsaid


@pytest.mark.parametrize(("content", "place"), [(b"ab\xffcd", 2), (b"\x93ab", 0), (b"caf\xe9", 3)])
def test_text_that_is_not_utf8_is_refused(content, place):
    with pytest.raises(ConfigError, match=rf"f is not UTF-8 text at byte {place} of what is sco"):
        decoded(content, "f")


def test_pages_begin_at_titles():
    raw = " \n = One = \n \n text \n = = Part = = \n more \n = Two = \n end \n"
    assert pages(raw) == [" = One = \n \n text \n = = Part = = \n more ", " = Two = \n end \n"]
    assert sum(map(len, pages(raw))) == len(raw) - len(" \n") - 1  # blank start; one line end
