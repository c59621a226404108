"""A run resumes with the config and data it started with, or says what differs and the way on."""

import json
import os

import pytest

from gpt_pjit.checkpoint_arrays import derived_workdir
from gpt_pjit.config import differences
from gpt_pjit.core.errors import ConfigError, FaultError, IntegrityError
from gpt_pjit.core.runtime import (
    Origin,
    check_same_data,
    entries_of,
    only_trainer,
    open_workdir,
    read_run,
    record_start,
)
from gpt_pjit.core.tokens import BytesTokenizer
from tests.helpers import tiny

SET = {"path": "sets/a", "tokenizer": "aaaa", "vocab_size": 257, "sha256": "bbbb"}
TOKENIZER = ("tokenizer.json", b"{}")
BYTES_SET = SET | {"tokenizer": BytesTokenizer().sha256}
LEARNED = {"positions": "learned"}


def started(folder, config, *sets, allowed=()):
    open_workdir(folder, config, allowed=allowed)
    check_same_data(folder, list(sets or [SET]))
    record_start(folder, config, list(sets or [SET]), TOKENIZER)
    return folder


@pytest.fixture
def workdir(tmp_path):
    return started(tmp_path / "run", tiny())


def test_each_start_is_recorded_and_the_data_at_the_first(workdir):
    record = json.loads((workdir / "run.json").read_text())
    assert record["data"] == [SET]
    assert record["tokenizer"] == {"sha256": "aaaa", "vocab_size": 257, "path": "sets/a"}
    assert len(record["starts"]) == 1
    assert (workdir / "tokenizer.json").read_bytes() == b"{}"
    started(workdir, tiny(log={"every": 3}), SET | {"path": "gs://moved/a"})
    again = json.loads((workdir / "run.json").read_text())
    assert (again["data"], len(again["starts"])) == ([SET], 2)
    assert again["config"]["log"]["every"] == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokenizer": "cccc"}, "tokenizer of sets/b is cccc, the run had aaaa of sets/a"),
        ({"vocab_size": 300}, "vocab_size of sets/b is 300, the run had 257 of sets/a"),
        ({"sha256": "dddd"}, "sha256 of sets/b is dddd, the run had bbbb of sets/a"),
    ],
)
def test_other_data_are_refused_with_both_named(workdir, changed, message):
    with pytest.raises(ConfigError, match=rf"run in {workdir} .*\n  {message}; use the run's data"):
        started(workdir, tiny(), SET | {"path": "sets/b"} | changed)
    with pytest.raises(ConfigError, match="there are 2 sets, the run had 1"):
        started(workdir, tiny(), SET, SET)
    assert len(json.loads((workdir / "run.json").read_text())["starts"]) == 1


def test_a_start_that_never_reached_its_data_binds_nothing(tmp_path):
    open_workdir(tmp_path / "run", tiny(optim={"steps": 5}))
    started(tmp_path / "run", tiny(optim={"steps": 7}))
    with pytest.raises(ConfigError, match=r"optim.steps=5: the run in .* has 7"):
        open_workdir(tmp_path / "run", tiny(optim={"steps": 5}))


@pytest.mark.parametrize(
    "changes", [{"optim": {"steps": 2000}}, {"data": {"batch_size": 32}}, {"optim": {"b2": 0.9}}]
)
def test_what_cannot_change_in_a_run_names_the_way_on(workdir, changes):
    way = rf"start a new run from it: --from={workdir} --workdir=NEW"
    with pytest.raises(ConfigError, match=way):
        open_workdir(workdir, tiny(**changes))
    with pytest.raises(ConfigError, match=way):
        started(workdir, tiny(), SET | {"sha256": "dddd"})


def test_a_model_of_another_shape_is_not_promised_its_weights(workdir):
    with pytest.raises(ConfigError, match=r"model.d_ff=64: .*use another --workdir") as raised:
        open_workdir(workdir, tiny(model={"d_ff": 64}))
    assert "--from" not in str(raised.value)


def test_a_change_is_allowed_by_name_and_recorded(workdir):
    more = tiny(optim={"steps": 2000, "peak_lr": 0.5}, log={"every": 3})
    refused = r"optim.steps=2000: .* has 1000; .* --allow_change=optim.steps,optim.peak_lr, or"
    with pytest.raises(ConfigError, match=refused):
        open_workdir(workdir, more)
    with pytest.raises(ConfigError, match=r"optim.peak_lr=0.5: .*=optim.steps,optim.peak_lr, or"):
        open_workdir(workdir, more, allowed=["optim.steps"])
    assert read_run(workdir)[0] == tiny()
    open_workdir(workdir, more, allowed=["optim.steps", "optim.peak_lr"])
    record_start(workdir, more, [SET], TOKENIZER, 700)
    config, record = read_run(workdir)
    assert config == more
    one, two = record["starts"]
    assert (one["step"], "changes" in one) == (0, False)
    assert two["step"] == 700
    assert two["changes"] == {
        "optim.steps": {"from": 1000, "to": 2000},
        "optim.peak_lr": {"from": 1e-3, "to": 0.5},
        "log.every": {"from": 10, "to": 3},
    }
    open_workdir(workdir, more)  # once is enough
    with pytest.raises(ConfigError, match=r"optim.steps=1000: the run in .* has 2000"):
        open_workdir(workdir, tiny())


def test_what_weights_fix_is_never_allowed(workdir):
    with pytest.raises(ConfigError, match=r"model.d_ff=64: .*use another --workdir"):
        open_workdir(workdir, tiny(model={"d_ff": 64}), allowed=["model.d_ff"])
    with pytest.raises(ConfigError, match=r"optim.stepz.*: no such field.*mean optim.steps\?"):
        open_workdir(workdir, tiny(), allowed=["optim.stepz"])


@pytest.fixture
def branch(workdir, tmp_path):
    """A run that has begun from step 400 of another."""
    folder, config = tmp_path / "branch", tiny(optim={"schedule": "constant"})
    origin = Origin(workdir, 400)
    assert open_workdir(folder, config, origin) == origin
    entries = entries_of(origin, 400, differences(tiny(), config), read_run(workdir)[1])
    record_start(folder, config, [SET], TOKENIZER, 400, entries)
    return folder, config


def test_a_branch_records_where_it_began_and_what_differs(branch, workdir):
    folder, config = branch
    assert read_run(folder)[1]["from"] == {
        "workdir": str(workdir),
        "step": 400,
        "differences": {"optim.schedule": {"from": "cosine", "to": "constant"}},
    }
    for asked in (None, Origin(workdir, 400), Origin(workdir, None)):
        assert open_workdir(folder, config, asked) == Origin(workdir, 400)
    began = rf"--from={workdir}/checkpoints/300: .* began from {workdir}/checkpoints/400; use anoth"
    with pytest.raises(ConfigError, match=began):
        open_workdir(folder, config, Origin(workdir, 300))
    with pytest.raises(ConfigError, match=r"began without --from; use another --workdir"):
        open_workdir(workdir, tiny(), Origin(folder, None))


def test_a_branch_has_the_model_and_the_tokenizer_of_its_origin(workdir, tmp_path):
    origin = Origin(workdir, None)
    with pytest.raises(ConfigError, match=rf"model.d_ff=64: {workdir} has 128; keep that value"):
        open_workdir(tmp_path / "new", tiny(model={"d_ff": 64}), origin)
    assert not (tmp_path / "new").exists()
    open_workdir(tmp_path / "new", tiny(), origin)
    with pytest.raises(ConfigError, match=r"tokenizer of sets/a is cccc, the model had aaaa"):
        check_same_data(tmp_path / "new", [SET | {"tokenizer": "cccc"}], origin)
    check_same_data(tmp_path / "new", [SET | {"sha256": "cccc"}], origin)
    with pytest.raises(ConfigError, match=r"is not a folder"):
        open_workdir(tmp_path / "other", tiny(), Origin(tmp_path / "missing", None))


def test_a_workdir_that_cannot_be_used_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file is neither a run nor an empty folder"):
        open_workdir(tmp_path / "file", tiny())
    with pytest.raises(ConfigError, match="cannot be used: Not a directory"):
        open_workdir(tmp_path / "file" / "run", tiny())
    with pytest.raises(ConfigError, match="cannot be used: No such file or directory"):
        open_workdir(type(tmp_path)("/proc/no/such"), tiny())
    with pytest.raises(ConfigError, match="cannot be used: File name too long"):
        open_workdir(tmp_path / ("x" * 300), tiny())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "other").write_text("")
    with pytest.raises(ConfigError, match="is neither a run nor an empty folder"):
        open_workdir(tmp_path / "full", tiny())

    def no_space(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(ConfigError, match=r"run.json cannot be written: No space left on device"):
        open_workdir(tmp_path / "run", tiny())
    assert list((tmp_path / "run").iterdir()) == []  # nothing half-written


@pytest.mark.parametrize("content", ["", "[]", '{"config": {}}', "[" * 9000])
def test_a_damaged_record_is_read_from_its_copy(workdir, content, capsys):
    before = read_run(workdir)
    (workdir / "run.json").write_text(content)
    assert read_run(workdir) == before
    assert "run.json is damaged" in capsys.readouterr().err
    open_workdir(workdir, tiny())
    (workdir / "run.copy.json").write_text(content)
    with pytest.raises(IntegrityError, match=r"run.json is damaged"):
        open_workdir(workdir, tiny())


def test_a_second_trainer_is_refused_until_the_first_has_ended(workdir):
    match = rf"is being trained by process {os.getpid()} on "
    with only_trainer(workdir), pytest.raises(FaultError, match=match), only_trainer(workdir):
        pass
    with only_trainer(workdir):
        pass


@pytest.fixture
def weights(tmp_path):
    """A workdir made of other weights: a run of another config may start there."""
    source = {"kind": "import", "from": "somewhere"}
    with derived_workdir(tmp_path / "new", tiny(model=LEARNED), BytesTokenizer(), source):
        pass
    return tmp_path / "new"


def test_what_the_weights_do_not_fix_may_be_chosen(weights):
    config = tiny(
        model=LEARNED | {"dropout_residual": 0.1, "dtype": "bfloat16"},
        optim={"steps": 7, "warmup_steps": 0},
        data={"batch_size": 8},
    )
    started(weights, config, BYTES_SET, BYTES_SET | {"sha256": "cccc"})
    kept, record = read_run(weights)
    assert kept == config
    assert [each["sha256"] for each in record["data"]] == ["bbbb", "cccc"]
    assert record["source"]["from"] == "somewhere"
    assert len(record["starts"]) == 1
    with pytest.raises(ConfigError, match=r"optim.steps=8: the run in .* has 7"):
        open_workdir(weights, tiny(model=LEARNED, optim={"steps": 8}))


def test_a_failed_first_start_does_not_bind_them(weights):
    """Whatever failed after the workdir was opened: a path of the data, another tokenizer."""
    typo = tiny(model=LEARNED, data={"path": "no/such", "text": ""}, optim={"steps": 9})
    open_workdir(weights, typo)
    with pytest.raises(ConfigError, match=r"tokenizer of sets/a is cccc, the model had"):
        check_same_data(weights, [BYTES_SET | {"tokenizer": "cccc"}])
    assert read_run(weights)[0] == tiny(model=LEARNED)
    right = tiny(model=LEARNED, optim={"steps": 7})
    started(weights, right, BYTES_SET)
    kept, record = read_run(weights)
    assert (kept, record["data"]) == (right, [BYTES_SET])


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
