"""The library alone, and trees that are not ours."""

import compileall
import doctest
import importlib
import shutil
import sys
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, PartitionSpec as P

from gpt_pjit.partition import (
    ConfigError,
    explain,
    lint,
    optimizer_specs,
    place,
    searched,
    shardings,
    why,
)
from tests.helpers import ROOT
from tests.processes import run

SIZES = {"fsdp": 4, "tp": 2}
FILES = (
    "__init__.py",
    "core/__init__.py",
    "core/errors.py",
    "core/sharding",
    "partition/__init__.py",
    "partition/explain.py",
    "partition/lint.py",
)
ALONE = """
import sys, time
import jax
before, start = set(sys.modules), time.process_time()
from gpt_pjit.partition import explain, lint, optimizer_specs, place, searched, shardings
seconds = time.process_time() - start
new = {name.partition(".")[0] for name in set(sys.modules) - before}
rules = searched([("w", jax.P("fsdp"))])
leaf = jax.ShapeDtypeStruct((8, 4), "float32")
placement = place(rules, {"w": leaf}, "fsdp", {"fsdp": 4})
assert explain(placement, {"w": leaf})["bytes_a_device"]["stored"] == 32, placement
assert [finding.kind for finding in lint(rules, {"w": leaf}, {"fsdp": 4})] == ["rank"]
print(seconds, *(new - {"gpt_pjit", "jax"} - sys.stdlib_module_names))
"""


def test_it_needs_jax_and_the_standard_library_and_none_of_our_other_files(tmp_path):
    """These files alone, as a package of their own; CPU seconds, which a busy machine leaves."""
    for name in FILES:
        source, target = ROOT / "gpt_pjit" / name, tmp_path / "gpt_pjit" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, target)
    compileall.compile_dir(tmp_path, quiet=1)
    command = [sys.executable, "-W", "error", "-c", ALONE]
    result = run(command, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    seconds, *others = result.stdout.split()
    assert others == []
    assert float(seconds) < 0.1


@pytest.mark.parametrize(
    "module",
    [
        "core.sharding.optimizer_state",
        "core.sharding.placement",
        "core.sharding.rules",
        "partition.explain",
        "partition.lint",
    ],
)
def test_examples_of_docstrings(module):
    results = doctest.testmod(importlib.import_module(f"gpt_pjit.{module}"))
    assert results.attempted > 0
    assert results.failed == 0


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


@jax.tree_util.register_dataclass
@dataclass
class Mixed:
    """As an equinox module: arrays beside what is none."""

    weight: Any
    rate: float
    activate: Any
    step: Any


def test_what_is_no_array_is_left_alone_and_one_element_replicated_and_both_are_said():
    tree = Mixed(jnp.ones((8, 4)), 0.1, jax.nn.gelu, jnp.zeros(()))
    rules = (("weight", ("fsdp", "tp")),)
    placement = place(rules, tree, "zero", SIZES)
    assert placement.stored == Mixed(P("fsdp", "tp"), None, None, P())
    notes = {f.kind: f for f in lint(rules, tree, SIZES)}
    assert {kind: (f.severity, f.value) for kind, f in notes.items()} == {
        "no array": ("note", ["rate", "activate"]),
        "one element": ("note", ["step"]),
    }
    record = explain(placement, tree, optax.contrib.muon(1e-3))
    assert record["without_spec"] == ["rate", "activate"]
    assert [name for name in record["state_of_no_parameter"] if "ns_coeffs" in name]
    assert record["parameters"]["step"]["rule"]["number"] is None
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"), devices=jax.devices()[:8])
    arrays = Mixed(tree.weight, None, None, tree.step)
    placed = jax.device_put(arrays, shardings(mesh, placement.stored))
    assert placed.weight.sharding.spec == P("fsdp", "tp")
    with pytest.raises(ConfigError, match="rule 1='rate': matches no parameter"):
        place((*rules, ("rate", ())), tree, "zero", SIZES)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_train_state_and_an_nnx_optimizer_in_one_call(kind):
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"), axis_types=(kind,) * 2, devices=jax.devices()[:8])
    params = {"dense": {"kernel": jnp.ones((8, 16)), "bias": jnp.ones(16)}}
    rules = ((r".*/?kernel(/value)?", ("fsdp", "tp")), (r".*/?bias(/value)?", ("tp",)))
    placement = place(rules, params, "fsdp", mesh)
    tx = optax.adam(1e-3)

    def create(params):
        return TrainState.create(apply_fn=None, params=params, tx=tx)

    specs = optimizer_specs(create, params, placement.optimizer)
    state = jax.jit(create, out_shardings=shardings(mesh, specs))(params)
    kernels = (state.params, state.opt_state[0].mu, state.opt_state[0].nu)
    assert [tree["dense"]["kernel"].sharding.spec for tree in kernels] == [P("fsdp", "tp")] * 3
    assert (specs.step, specs.opt_state[0].count) == (P(), P())

    graph, weights = nnx.split(nnx.Linear(8, 16, rngs=nnx.Rngs(0)))
    placement = place(rules, weights, "fsdp", mesh)

    def optimizer(weights):
        return nnx.state(nnx.Optimizer(nnx.merge(graph, weights), tx, wrt=nnx.Param))

    specs = optimizer_specs(optimizer, weights, placement.optimizer)
    state = jax.jit(optimizer, out_shardings=shardings(mesh, specs))(weights)
    assert state["opt_state"][0]["mu"]["kernel"].get_value().sharding.spec == P("fsdp", "tp")
    assert specs["step"].get_value() == P()


@pytest.mark.parametrize(
    ("table", "path", "spec"),
    [
        ([("mlp/up", P("fsdp", "tp")), (".*", P(None))], "layers/0/mlp/up/kernel", ("fsdp", "tp")),
        ([("kernel$", P("fsdp")), (".*", P())], "layers/0/mlp/up/kernel", ("fsdp", None)),
        ([("^layers", P("tp"))], "layers/0/mlp/up/kernel", ("tp", None)),
        ([("^mlp", P("tp")), (".*", None)], "layers/0/mlp/up/kernel", (None, None)),
        ([["up|down", ("fsdp", "tp")]], "layers/0/mlp/up/kernel", ("fsdp", "tp")),
        ([(("mlp", "up|down"), P("fsdp", "tp"))], "layers/0/mlp/up/kernel", ("fsdp", "tp")),
        ([(("mlp", "u"), P("fsdp")), ((".*",), P("tp"))], "a/mlp/up/kernel", ("tp", None)),
    ],
)
def test_searched_tables_mean_what_they_mean_in_the_field(table, path, spec):
    """As `re.search` on the path, with the spec as JAX reads it: None beyond its end."""
    params = {path: shape(8, 4), "count": shape()}
    rules = searched(table)
    used = [
        row for row in rules if why(rules, params, path, SIZES)[rules.index(row)].verdict == "taken"
    ]
    placement = place(used, params, "fsdp", SIZES, scanned="")
    assert placement.stored == {path: P(*spec), "count": P()}


def test_lint_judges_searched_tables():
    """A renamed layer that a catch-all takes, a spec that forgets the layers, one too long."""
    table = [
        ("attn/kernel", P("fsdp", "tp")),
        ("mlp/kernel", P("fsdp", "tp")),
        ("norm", P("fsdp", "tp")),
        (".*", P(None)),
    ]
    params = {
        "attention": {"kernel": shape(1024, 1024)},
        "mlp": {"kernel": shape(12, 1024, 1024)},
        "norm": shape(1024),
        "step": shape(),
    }
    found = {(f.kind, f.severity, f.rule) for f in lint(searched(table), params, SIZES)}
    assert found == {
        ("dead", "error", 0),
        ("rank", "warning", 1),
        ("rank", "error", 2),
        ("catch-all", "warning", 3),
        ("replicated", "warning", 3),
    }


def test_an_axis_without_a_role_is_named():
    tree = {"w": np.zeros((8, 4), np.float32)}
    rules, sizes = (("w", ("experts", "tp")),), {"experts": 4, "tp": 2}
    with pytest.raises(ConfigError, match=r"mesh\.experts=4: has no role"):
        place(rules, tree, "zero", sizes)
    roles = {"experts": "model", "tp": "model"}
    assert place(rules, tree, "ddp", sizes, roles=roles).stored == {"w": P("experts", "tp")}
    with pytest.raises(ConfigError, match=r"mesh\.tp=2: has the role 'modle'"):
        place(rules, tree, "ddp", sizes, roles=roles | {"tp": "modle"})
    with pytest.raises(ConfigError, match="layout='zero3': is unknown; known: ddp, zero1, zero"):
        place(rules, tree, "zero3", sizes, roles=roles)
