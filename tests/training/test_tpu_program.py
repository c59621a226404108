"""The 580M step as the TPU compiler builds it for the 32 cores of a v3-32, with no TPU at hand."""

import importlib.util
import os
import re

import jax
import pytest

from gpt_pjit.partition import make_mesh, paths_and_leaves
from gpt_pjit.training import build
from tests.helpers import load_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.tpu_compiler,
    pytest.mark.xdist_group("tpu"),  # one compile for all of them
    pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs the extra `plan`"),
]
GIB = 2**30
COLLECTIVE = re.compile(
    r"= \(?([a-z0-9]+)\[([0-9,]*)\].* (all-reduce|reduce-scatter|all-gather|all-to-all|"
    r"collective-permute)(?:-start)?\("
)


@pytest.fixture(scope="module")
def compiled():
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    from jax.experimental import topologies

    config = load_config("580m")
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v3:4x4").devices
    program = build(config, make_mesh((1, 32, 1), devices))
    with jax.set_mesh(program.mesh):
        return program, program.train_step.lower(program.state, program.tokens).compile()


def instructions(compiled):
    """(computation, line) of each instruction; the entry computation is "ENTRY"."""
    computation = None
    for line in compiled[1].as_text().splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            computation = "ENTRY" if header.group(1) else header.group(2)
        elif line.startswith(" "):
            yield computation, line


@pytest.fixture(scope="module")
def collectives(compiled):
    """(computation, kind, dtype, shape) of every collective."""
    found = []
    for computation, line in instructions(compiled):
        if match := COLLECTIVE.search(line):
            dtype, shape, kind = match.groups()
            shape = tuple(int(size) for size in shape.split(",") if size)
            found.append((computation, kind, dtype, shape))
    return found


def matrix_shapes(program):
    return sorted(
        leaf.shape
        for path, leaf in paths_and_leaves(program.state.params)
        if path.endswith(("kernel", "embedding"))
    )


def test_state_and_peak_per_core(compiled):
    memory = compiled[1].memory_analysis()
    assert memory.argument_size_in_bytes <= 0.22 * GIB
    assert memory.peak_memory_in_bytes < 14.5 * GIB


def test_no_collective_runs_in_a_loop(collectives):
    assert {computation for computation, *_ in collectives} == {"ENTRY"}


def test_each_gradient_is_reduced_once_in_float32(compiled, collectives):
    reductions = [c for c in collectives if c[1] in ("all-reduce", "reduce-scatter")]
    assert {dtype for _, _, dtype, _ in reductions} == {"f32"}
    matrices = sorted(shape for *_, shape in reductions if len(shape) > 1)
    assert matrices == matrix_shapes(compiled[0])


def test_weights_are_gathered_once_in_bfloat16(compiled, collectives):
    gathers = [c for c in collectives if c[1] == "all-gather"]
    assert {dtype for _, _, dtype, _ in gathers} == {"bf16"}
    assert sorted(shape for *_, shape in gathers) == matrix_shapes(compiled[0])
    assert len(collectives) == len(gathers) + len(matrix_shapes(compiled[0])) + 1  # vectors: one


def test_one_float32_copy_of_the_logits(compiled):
    """Their gradient is made inside the products that use it, never stored in float32."""
    rows = 512 // 32  # of a core
    made = re.compile(rf" = [^=]*f32\[(?:{rows * 1024}|{rows},1024),50304\][^=]* ([\w\-]+)\(")
    views = ("bitcast", "get-tuple-element", "parameter", "tuple", "while")
    stored = [
        line
        for name, line in instructions(compiled)
        if "fused" not in name and (match := made.search(line)) and match.group(1) not in views
    ]
    assert len(stored) == 1, stored
