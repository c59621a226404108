"""`plan` compiles the program that `main` runs."""

import importlib.util
import shutil

import jax
import numpy as np
import pytest

from gpt_pjit.core import chips, train
from gpt_pjit.core.chips import OPERATION_VMEM, compiler_options
from gpt_pjit.core.runtime import global_array
from gpt_pjit.plan import compile as compile_room
from gpt_pjit.plan.compile import (
    compile_lowered,
    devices_of,
    find_topology,
    fingerprint,
    lower,
    training_for,
)
from tests.helpers import random_tokens, tiny, with_fields


class BuiltError(Exception):
    pass


def program_of_main(config, monkeypatch, tmp_path):
    """The program that `train` builds, stopped before it opens its workdir."""
    built = []
    monkeypatch.setattr(train, "build_training", lambda *a: built.append(build(*a)) or built[-1])

    def stop(*_):
        raise BuiltError

    monkeypatch.setattr(train, "open_workdir", stop)
    with pytest.raises(BuiltError):
        train.train(config, tmp_path, tools=None)
    return built[0]


build = train.build_training


@pytest.mark.parametrize("layout", ["zero", "fsdp"])
def test_plan_and_main_lower_the_same_step(layout, monkeypatch, tmp_path):
    config = tiny(partition={"layout": layout}, model={"dropout_attention": 0.1})
    program = program_of_main(config, monkeypatch, tmp_path)
    planned = lower(training_for(config, jax.devices())).as_text()
    with jax.set_mesh(program.mesh):
        # With the arrays that the loop passes, not with their description.
        state = jax.tree.map(
            lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding),
            program.state,
        )
        rows = random_tokens(config, 0)
        tokens = global_array(program.tokens.sharding, rows, len(rows))
        run = program.train_step.lower(state, tokens).as_text()
    assert run == planned


def test_the_hash_follows_the_program():
    config, topology = tiny(), find_topology("h100-8")

    def hash_of(fields):
        program = training_for(with_fields(config, fields), jax.devices()[:8])
        return fingerprint(lower(program), topology)

    assert hash_of({}) == hash_of({"log.every": 3})
    assert hash_of({}) != hash_of({"model.remat": "full"})


@pytest.fixture
def hash_now():
    """A function that gives the hash of one program under what is set now."""
    lowered = lower(training_for(tiny(), jax.devices()[:8]))
    return lambda: fingerprint(lowered, find_topology("v5e-8"))


@pytest.mark.parametrize("name", ["XLA_FLAGS", "LIBTPU_INIT_ARGS"])
def test_the_hash_follows_the_compilers_flags(hash_now, monkeypatch, name):
    before = hash_now()
    monkeypatch.setenv(name, "--xla_something=true")
    assert hash_now() != before


@pytest.mark.parametrize(
    "file", ["chips.py", "model/gpt.py", "sharding/rules.py", "training/step.py"]
)
def test_the_hash_follows_the_sources_of_the_core(hash_now, monkeypatch, tmp_path, file):
    core = shutil.copytree(compile_room.CORE, tmp_path / "core")
    monkeypatch.setattr(compile_room, "CORE", core)
    before = hash_now()
    (core / file).write_text("# a line more\n")
    assert hash_now() != before


@pytest.mark.parametrize("package", ["jax", "jaxlib", "libtpu"])
def test_the_hash_follows_the_versions(hash_now, monkeypatch, package):
    monkeypatch.setattr(compile_room, "find_spec", lambda _: True)
    monkeypatch.setattr(compile_room, "version", lambda _: "1")
    before = hash_now()
    monkeypatch.setattr(compile_room, "version", lambda p: "2" if p == package else "1")
    assert hash_now() != before


def test_a_flag_of_the_user_stands_before_the_options_of_a_chip(monkeypatch):
    assert compiler_options("TPU v6 lite") == {OPERATION_VMEM: "65536"}
    assert compiler_options("TPU v3") == compiler_options("cpu") == compiler_options("") == {}
    monkeypatch.setenv("LIBTPU_INIT_ARGS", f"--{OPERATION_VMEM}=98304")
    assert compiler_options("TPU v6 lite") == {}


@pytest.mark.slow
@pytest.mark.tpu_compiler
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs the extra `plan`")
def test_a_step_is_compiled_with_the_options_of_its_chip(monkeypatch):
    """The compiler refuses one that it does not know."""
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    monkeypatch.setattr(chips, "OPERATION_VMEM", "xla_tpu_no_such_flag")
    lowered = lower(training_for(tiny(), devices_of(find_topology("v6e-8"))))
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_flag"):
        compile_lowered(lowered)
