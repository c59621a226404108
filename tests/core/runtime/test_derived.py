"""A workdir made of other weights: a run of another config may begin there, of the same model."""

import json

import pytest

from gpt_pjit.checkpoint import derived_workdir, no_data_yet
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.runtime import check_data, open_workdir, read_run
from tests.helpers import tiny

SET = {"path": "sets/a", "tokenizer": "aaaa", "vocab_size": 257, "sha256": "bbbb"}
TOKENIZER = ("tokenizer.json", b"{}")


@pytest.fixture
def weights(tmp_path):
    with derived_workdir(
        tmp_path / "new",
        tiny(model={"positions": "learned"}),
        source={"kind": "import", "from": "somewhere"},
        data=no_data_yet("somewhere", "aaaa", 257),
        tokenizer=TOKENIZER,
        starts=[],
    ) as draft:
        assert not (tmp_path / "new").exists()
        assert (draft / "tokenizer.json").read_bytes() == b"{}"
    return tmp_path / "new"


def test_what_the_weights_do_not_fix_may_be_chosen(weights):
    config = tiny(
        model={"positions": "learned", "dropout_residual": 0.1, "dtype": "bfloat16"},
        optim={"steps": 7, "warmup_steps": 0},
        data={"batch_size": 8},
    )
    open_workdir(weights, config)
    check_data(weights, [SET, SET | {"sha256": "cccc"}], TOKENIZER)
    kept, record = read_run(weights)
    assert kept == config
    assert [each["sha256"] for each in record["data"]] == ["bbbb", "cccc"]
    assert record["source"]["from"] == "somewhere"
    assert len(record["starts"]) == 1
    with pytest.raises(ConfigError, match=r"optim.steps=8: the run in .* has 7"):
        open_workdir(weights, tiny(model={"positions": "learned"}, optim={"steps": 8}))


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
    sections = {"model": {"positions": "learned"}}
    sections.setdefault(section, {})[field] = value
    message = rf"{section}.{field}={value!r}: the run in .* has {has}"
    with pytest.raises(ConfigError, match=message):
        open_workdir(weights, tiny(**sections))
    assert json.loads((weights / "run.json").read_text())["starts"] == []


def test_only_data_of_their_tokenizer_will_do(weights):
    with pytest.raises(ConfigError, match="tokenizer of sets/a is cccc, the run had aaaa of some"):
        check_data(weights, [SET | {"tokenizer": "cccc"}], TOKENIZER)


def test_nothing_stays_of_what_fails_or_is_there(weights, tmp_path):
    settings = {
        "source": {},
        "data": [],
        "tokenizer": (None, b""),
        "starts": [],
    }
    with (
        pytest.raises(ConfigError, match="is there already"),
        derived_workdir(weights, tiny(), **settings),
    ):
        pass
    with (
        pytest.raises(ZeroDivisionError),
        derived_workdir(tmp_path / "other", tiny(), **settings),
    ):
        1 / 0  # noqa: B018
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
