"""A run that begins from a step of another, or changes by name, computes what it should."""

import jax
import numpy as np
import pytest

from gpt_pjit.checkpoint_arrays import derived_workdir, read_arrays, saved_shapes
from gpt_pjit.core.checkpoints import saved_steps, write_state
from gpt_pjit.core.errors import ConfigError, IntegrityError
from gpt_pjit.core.files import as_path
from gpt_pjit.core.runtime import Origin, read_run
from gpt_pjit.core.sharding import paths_and_leaves
from gpt_pjit.core.tokens import BytesTokenizer, walks_of
from gpt_pjit.core.train import Tools, train
from tests.helpers import make_workdir, program_on, tiny, with_fields
from tests.processes import by_step

pytestmark = pytest.mark.slow

STEPS, DECAY = 12, 4
STABLE = STEPS - DECAY
FIELDS = {
    "model.n_layers": 1,
    "model.d_model": 32,
    "model.d_ff": 32,
    "model.vocab_size": 288,
    "model.dropout_residual": 0.1,
    "data.text": "",
    "data.sequence_length": 16,
    "data.batch_size": 32,
    "optim.schedule": "constant",
    "optim.steps": STABLE,
    "optim.warmup_steps": 3,
    "optim.final_lr_fraction": 0.0,
    "eval.every": 100,
    "checkpoint.every": 4,
    "checkpoint.keep": 10,
    "log.every": 1,
}
WSD = {"optim.schedule": "wsd", "optim.steps": STEPS, "optim.decay_steps": DECAY}


@pytest.fixture
def run(make_set, tmp_path, capsys):
    """`run(name, {field: value}, origin)` trains; returns what was said."""
    sets = [make_set(4000, 50)[0], make_set(2500, 40)[0]]

    def run(name, fields=None, origin=None, allowed=()):
        fields = FIELDS | {"data.path": sets[0].path} | (fields or {})
        fields = {n: v(*sets) if callable(v) else v for n, v in fields.items()}
        config = with_fields(tiny(), fields)
        source = None
        if origin:
            folder = as_path(origin[0]) if "://" in origin[0] else tmp_path / origin[0]
            source = Origin(folder, origin[1])
        assert train(config, tmp_path / name, Tools(None, None), source, allowed) == 0
        return capsys.readouterr().out

    run.folder = tmp_path
    return run


def state(folder, step):
    directory = folder / "checkpoints"
    return dict(paths_and_leaves(read_arrays(directory, step, saved_shapes(directory, step))))


def assert_same_state(one, two, step):
    one, two = state(one, step), state(two, step)
    assert one.keys() == two.keys()
    for path, array in one.items():
        np.testing.assert_array_equal(array, two[path], path)


MESHES = [
    pytest.param((1, 32, 1), "zero", id="data 32, zero"),
    pytest.param((1, 8, 4), "fsdp", id="data 8 tensor 4, fsdp"),
    pytest.param((2, 16, 1), "ddp", id="replica 2 data 16, ddp"),
    pytest.param((1, 16, 2), "zero1", id="data 16 tensor 2, zero1"),
]


@pytest.mark.long
@pytest.mark.parametrize(("shape", "layout"), MESHES)
def test_a_decay_from_a_stable_step_is_that_of_the_unbroken_run_to_the_bit(run, shape, layout):
    mesh = dict(zip(("mesh.replica", "mesh.data", "mesh.tensor"), shape, strict=True))
    mesh |= {"partition.layout": layout}
    run("unbroken", WSD | mesh)
    run("trunk", mesh)
    said = run("branch", WSD | mesh, ("trunk", STABLE))
    unbroken, trunk, branch = (run.folder / name for name in ("unbroken", "trunk", "branch"))
    assert "from step 8 of" in said
    assert "optim.schedule 'constant' -> 'wsd'" in said
    assert by_step(trunk) | by_step(branch) == by_step(unbroken)
    assert list(by_step(branch)) == list(range(STABLE + 1, STEPS + 1))
    assert_same_state(trunk, unbroken, STABLE)
    assert_same_state(branch, unbroken, STEPS)
    assert read_run(branch)[1]["from"]["step"] == STABLE
    assert "this run is finished" in run("branch", WSD | mesh, ("trunk", STABLE))


def assert_near(one, two):
    assert one == pytest.approx(two, abs=1e-5)


@pytest.mark.long
def test_a_branch_on_another_mesh_and_layout_has_the_losses_of_the_same(run):
    other = {"mesh.data": 8, "mesh.tensor": 4, "partition.layout": "fsdp"}
    run("trunk")
    run("same", WSD, ("trunk", None))
    run("other", WSD | other, ("trunk", None))
    assert_near(by_step(run.folder / "other"), by_step(run.folder / "same"))


def test_a_branch_and_a_resumed_run_with_the_same_changes_are_the_same_to_the_bit(run):
    """Of more steps, another batch size and another learning rate; the trunk had finished."""
    changes = {"optim.steps": STEPS, "data.batch_size": 64, "optim.peak_lr": 5e-4}
    run("trunk")
    said = run("branch", changes, ("trunk", STABLE))
    example = STABLE * 32
    assert f"data: example {example} of " in said
    with pytest.raises(
        ConfigError, match=r"steps=12: .*--allow_change=data.batch_size,optim.steps,"
    ):
        run("trunk", changes)
    said = run("trunk", changes, allowed=list(changes))
    assert "changed at step 8: " in said
    assert "data.batch_size 32 -> 64" in said
    one, two = run.folder / "trunk", run.folder / "branch"
    assert by_step(two).items() <= by_step(one).items()
    assert_same_state(one, two, STEPS)
    config, record = read_run(one)
    assert record["starts"][-1]["changes"]["optim.steps"] == {"from": STABLE, "to": STEPS}
    assert (record["starts"][-1]["step"], record["finished"]) == (STABLE, STEPS)
    walks = walks_of(config, record)
    assert walks == walks_of(*read_run(two))
    read = [walk.draw(step, np.arange(walk.batch_size))[1] for walk, step in (
        *((walks[0], step) for step in range(STABLE)),
        *((walks[1], step) for step in range(STABLE, STEPS)),
    )]  # fmt: skip
    assert np.array_equal(np.concatenate(read), np.arange(8 * 32 + 4 * 64))


@pytest.mark.long
def test_a_run_with_more_steps_is_the_unbroken_longer_one_to_the_bit(run):
    run("unbroken", {"optim.steps": STEPS})
    run("run")
    run("run", {"optim.steps": STEPS}, allowed=["optim.steps"])
    assert by_step(run.folder / "run") == by_step(run.folder / "unbroken")
    assert_same_state(run.folder / "run", run.folder / "unbroken", STEPS)


@pytest.mark.long
def test_a_branch_into_a_mixture_is_the_run_whose_second_stage_begins_there(run):
    def stages(first, second):
        return lambda a, b: ((a.path, ((0, 1), (STABLE, first))), (b.path, ((STABLE, second),)))

    def then(a, b):
        return ((a.path, 1), (b.path, 3))

    def alone(a, b):
        return ((a.path, 1), (b.path, 0))

    run("unbroken", {"data.path": "", "data.sources": stages(1, 3), "optim.steps": STEPS})
    run("trunk", {"data.path": "", "data.sources": alone})
    run("branch", {"data.path": "", "data.sources": then, "optim.steps": STEPS}, ("trunk", None))
    unbroken, trunk, branch = (run.folder / name for name in ("unbroken", "trunk", "branch"))
    assert by_step(trunk) | by_step(branch) == by_step(unbroken)
    assert_same_state(branch, unbroken, STEPS)


@pytest.mark.long
def test_a_stage_that_begins_between_two_starts_changes_nothing(run):
    """Stopped and resumed across the boundary, which lies inside a checkpoint's interval."""
    fields = {"data.path": "", "data.sources": lambda a, b: ((a.path, 1), (b.path, ((6, 2),)))}
    run("unbroken", fields | {"optim.steps": STEPS})
    run("run", fields | {"optim.steps": 4})
    run("run", fields | {"optim.steps": STEPS}, allowed=["optim.steps"])
    assert by_step(run.folder / "run") == by_step(run.folder / "unbroken")


@pytest.mark.long
def test_a_branch_from_weights_alone_starts_as_in_their_own_workdir(run):
    config = with_fields(tiny(), FIELDS)
    program = program_on(config, (1, 1, 1))
    with jax.set_mesh(program.mesh):
        params = jax.device_get(program.init(jax.random.key(9)).params)
    source = {"kind": "import", "from": "somewhere"}
    with derived_workdir(run.folder / "weights", config, BytesTokenizer(), source) as draft:
        write_state(draft / "checkpoints", 0, {"step": np.int32(0), "params": params})
    said = run("branch", None, ("weights", None))
    assert "from step 0 of" in said
    assert saved_steps(run.folder / "weights/checkpoints") == [0]
    run("weights")
    assert_same_state(run.folder / "branch", run.folder / "weights", STABLE)
    assert read_run(run.folder / "branch")[1]["source"]["from"] == "somewhere"


@pytest.mark.long
def test_a_branch_stopped_before_its_first_save_begins_where_it_began(run, monkeypatch):
    """Also if its origin has trained on since."""

    def stopped(*_):
        raise ConfigError(["no disk"])

    run("trunk")
    with monkeypatch.context() as patched:
        patched.setattr("gpt_pjit.core.train._Run.steps", stopped)
        with pytest.raises(ConfigError, match="no disk"):
            run("branch", WSD, ("trunk", None))
    run("trunk", {"optim.steps": STEPS}, allowed=["optim.steps"])
    run("branch", WSD, ("trunk", None))
    assert list(by_step(run.folder / "branch")) == list(range(STABLE + 1, STEPS + 1))


def test_a_branch_without_steps_or_from_a_step_that_is_not_there_is_refused(run):
    run("trunk")
    with pytest.raises(ConfigError, match=r"optim.steps=8: the run is at step 8 already"):
        run("branch", None, ("trunk", None))
    with pytest.raises(ConfigError, match=r"holds no step 7; it holds 4, 8"):
        run("branch", WSD, ("trunk", 7))


@pytest.mark.long
def test_a_damaged_origin_is_left_as_it_is(run, capsys):
    run("trunk")
    folder = run.folder / "trunk" / "checkpoints"
    (folder / "8" / "default" / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"step 8 of .* cannot be read.*other steps here: 4"):
        run("branch", WSD, ("trunk", STABLE))
    said = run("branch", WSD, ("trunk", None))
    assert "from step 4 of" in said
    assert sorted(path.name for path in folder.iterdir()) == ["4", "8"]


@pytest.mark.long
def test_the_state_of_another_optimizer_is_refused_and_left_as_it_is(run):
    run("trunk")
    shapes = saved_shapes(run.folder / "trunk/checkpoints", STABLE)
    arrays = read_arrays(run.folder / "trunk/checkpoints", STABLE, shapes)
    arrays["opt_state"] = {"momentum": arrays["params"]}
    write_state(run.folder / "trunk/checkpoints", STABLE + 1, arrays | {"step": np.int32(9)})
    other = r"step 9 of .* was saved with other optim.rules \(it .* opt_state/.*\); use the rules"
    with pytest.raises(ConfigError, match=other):
        run("branch", WSD, ("trunk", None))
    with pytest.raises(ConfigError, match=other):
        run("trunk", {"optim.steps": STEPS}, allowed=["optim.steps"])
    assert saved_steps(run.folder / "trunk/checkpoints") == [4, 8, 9]


@pytest.mark.long
def test_a_branch_from_a_bucket(run, bucket):
    """Of a run that has read another set, so that this one begins."""
    params = make_workdir(as_path(f"{bucket}/trunk"), with_fields(tiny(), FIELDS), (4, 8))
    said = run("branch", WSD, (f"{bucket}/trunk", 4))
    assert "from step 4 of" in said
    assert "data: example 0 of " in said
    assert list(by_step(run.folder / "branch")) == list(range(5, STEPS + 1))
    assert read_run(run.folder / "branch")[1]["from"]["workdir"] == f"{bucket}/trunk"
    changed = (
        state(run.folder / "branch", STEPS)["params/embed/embedding"]
        - params[4]["embed"]["embedding"]
    )
    assert 0 < np.abs(changed).max() < 0.1
