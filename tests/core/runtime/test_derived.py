"""A workdir made of other weights: a run of another config may start there, of the same model."""

import json

import pytest

from gpt_pjit.checkpoint import derived_workdir
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.runtime import open_workdir, read_run, record_start
from gpt_pjit.core.tokens import BytesTokenizer
from tests.helpers import tiny

LEARNED = {"positions": "learned"}
SOURCE = {"kind": "import", "from": "somewhere"}
BYTES = BytesTokenizer()
SET = {"path": "sets/a", "tokenizer": BYTES.sha256, "vocab_size": 257, "sha256": "bbbb"}
TOKENIZER = (None, b"")


@pytest.fixture
def weights(tmp_path):
    with derived_workdir(tmp_path / "new", tiny(model=LEARNED), BYTES, SOURCE) as draft:
        assert not (tmp_path / "new").exists()
        assert (draft / "run.json").exists()
    return tmp_path / "new"


def start(folder, config, *sets):
    open_workdir(folder, config)
    record_start(folder, config, list(sets), TOKENIZER)


def test_what_the_weights_do_not_fix_may_be_chosen(weights):
    config = tiny(
        model=LEARNED | {"dropout_residual": 0.1, "dtype": "bfloat16"},
        optim={"steps": 7, "warmup_steps": 0},
        data={"batch_size": 8},
    )
    start(weights, config, SET, SET | {"sha256": "cccc"})
    kept, record = read_run(weights)
    assert kept == config
    assert [each["sha256"] for each in record["data"]] == ["bbbb", "cccc"]
    assert record["source"]["from"] == "somewhere"
    assert len(record["starts"]) == 1
    with pytest.raises(ConfigError, match=r"optim.steps=8: the run in .* has 7"):
        open_workdir(weights, tiny(model=LEARNED, optim={"steps": 8}))


@pytest.mark.parametrize("old_record", [False, True])
def test_a_failed_first_start_does_not_bind_them(weights, old_record):
    """Whatever failed after the workdir was opened: a path of the data, another tokenizer."""
    if old_record:  # as it was written before `tokenizer` had a field of its own
        record = json.loads((weights / "run.json").read_text())
        owner = record.pop("tokenizer")
        none = {"path": "x", "tokenizer": owner["sha256"], "vocab_size": 257, "sha256": None}
        (weights / "run.json").write_text(json.dumps(record | {"data": [none], "starts": [{}]}))
    typo = tiny(model=LEARNED, data={"path": "no/such", "text": ""}, optim={"steps": 9})
    open_workdir(weights, typo)
    with pytest.raises(
        ConfigError, match=r"tokenizer of sets/a is cccc, but the weights from .* have"
    ):
        record_start(weights, typo, [SET | {"tokenizer": "cccc"}], TOKENIZER)
    assert read_run(weights)[0] == tiny(model=LEARNED)
    right = tiny(model=LEARNED, optim={"steps": 7})
    start(weights, right, SET)
    kept, record = read_run(weights)
    assert (kept, record["data"]) == (right, [SET])


@pytest.mark.parametrize(
    ("section", "field", "value", "has"),
    [
        ("model", "n_layers", 3, 2),
        ("model", "vocab_size", 513, 512),
        ("model", "activation", "gelu_tanh", "'gelu'"),
        ("data", "sequence_length", 16, 32),
    ],
)
def test_what_they_fix_is_refused(weights, section, field, value, has):
    sections = {"model": LEARNED | {}}
    sections.setdefault(section, {})[field] = value
    message = rf"{section}.{field}={value!r}: the run in .* has {has}"
    with pytest.raises(ConfigError, match=message):
        open_workdir(weights, tiny(**sections))
    assert json.loads((weights / "run.json").read_text())["starts"] == []


def test_nothing_stays_of_what_fails_or_exists(weights, tmp_path):
    with (
        pytest.raises(ConfigError, match="already exists"),
        derived_workdir(weights, tiny(), BYTES, SOURCE),
    ):
        pass
    with (
        pytest.raises(ZeroDivisionError),
        derived_workdir(tmp_path / "other", tiny(), BYTES, SOURCE),
    ):
        1 / 0  # noqa: B018
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
