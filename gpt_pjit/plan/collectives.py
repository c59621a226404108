"""Every collective of a compiled step: what it moves, how often, where, and for which array."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gpt_pjit.core.model import Model
from gpt_pjit.core.sharding import paths_and_leaves, shard_shape, without_batch_axes
from gpt_pjit.pages import Record
from gpt_pjit.plan.hlo import Array, Instruction, Loop, Module, Visit

KINDS = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")
OUTSIDE, LAYER_LOOP = "outside", "layer loop"
LOOPS = {"layers": LAYER_LOOP, "accumulate_gradients": "microbatch loop"}  # by scope
OUR_LOOP = re.compile(rf"\b({'|'.join(LOOPS)})\)*/while$")  # `jit(step)/jvp(layers)/while`
SCATTER_FUSION = "all-reduce-scatter"  # how the TPU compiler writes a reduce-scatter


def collectives_of(
    module: Module, mesh_sizes: Mapping[str, int], parameters: Mapping[str, tuple[int, ...]]
) -> list[Record]:
    """A record for each, in the order of the program; docs/plan.md lists the keys.

    `parameters` are shapes by path, from `whole_shapes`.
    """
    found: dict[str, Record] = {}
    for visit in module.walk():
        kind = visit.instruction.opcode.removesuffix("-start")
        if kind in KINDS and (name := name_of(visit.instruction)) not in found:
            found[name] = _record(module, visit, kind, mesh_sizes, parameters)
    return list(found.values())


def collective_of(module: Module, instruction: Instruction) -> Instruction | None:
    """The instruction, or one inside of a fusion or an asynchronous call, if it is a collective."""
    found = [instruction]
    if instruction.opcode in ("fusion", "async-start"):
        found += module.inside(instruction)
    return next((i for i in found if i.opcode.removesuffix("-start") in KINDS), None)


def name_of(collective: Instruction) -> str:
    """One name for the fusions that start, carry on and end an asynchronous collective."""
    if collective.find('(chain_id)="'):
        return f"channel {collective.find(r'channel_id=([0-9]+)')}"
    return collective.find(r'async_collective_name="([^"]*)"') or collective.name


def whole_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter on a device once it is gathered over the batch axes."""
    specs = dict(paths_and_leaves(model.placement.compute))
    return {
        path: shard_shape(leaf.shape, without_batch_axes(specs[path]), model.mesh.shape)
        for path, leaf in paths_and_leaves(model.params)
    }


def _record(
    module: Module,
    visit: Visit,
    kind: str,
    mesh_sizes: Mapping[str, int],
    parameters: Mapping[str, tuple[int, ...]],
) -> Record:
    instruction = named = visit.instruction
    if not instruction.op_name:  # inside a fusion, which says where it comes from
        named = module.caller(visit.computation) or instruction
    groups = replica_groups(instruction.attributes, math.prod(mesh_sizes.values()))
    n = len(groups[0])
    arrays = _whole_arrays(instruction, kind, n)
    if visit.computation.startswith(SCATTER_FUSION):
        kind = "reduce-scatter"
    nbytes = sum(array.nbytes for array in arrays)
    if kind != "collective-permute":  # the formulas of a ring
        nbytes = nbytes * (n - 1) // n * (2 if kind == "all-reduce" else 1)
    loops = map(loop_label, reversed(visit.loops))
    return {
        "name": name_of(instruction),
        "kind": kind,
        "dtype": "+".join(sorted({array.dtype for array in arrays})),
        "shapes": [list(array.shape) for array in arrays],
        "axes": _axes(groups, mesh_sizes),
        "devices": n,
        "bytes": nbytes,
        "times": visit.times,
        "total_bytes": nbytes * visit.times,
        "where": " in ".join(loops) or OUTSIDE,
        "parameters": _matching(arrays, parameters),
        "op_name": named.op_name,
        "source": module.source(named),
    }


def loop_label(loop: Loop) -> str:
    """Which loop of ours it is, by the scope directly around it."""
    ours = OUR_LOOP.search(loop.instruction.op_name)
    return LOOPS[ours.group(1)] if ours else f"loop of {loop.trips}"


def _whole_arrays(instruction: Instruction, kind: str, group: int) -> tuple[Array, ...]:
    """The results, made whole over the group where they are a part, as of a reduce-scatter."""
    arrays = instruction.arrays
    if instruction.opcode.endswith("-start"):  # its result is (operands, results, ...)
        count = len(instruction.operands)
        arrays = arrays[count : 2 * count] or arrays
    if kind != "reduce-scatter":
        return arrays
    dim = int(instruction.find(r"dimensions=\{(\d+)\}") or 0)
    return tuple(
        Array(a.dtype, (*a.shape[:dim], a.shape[dim] * group, *a.shape[dim + 1 :])) for a in arrays
    )


def replica_groups(attributes: str, n_devices: int) -> np.ndarray:
    """Device numbers [groups, size], from any of the three ways in which XLA writes them."""
    if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", attributes):
        return np.array([[int(n) for n in re.findall(r"\d+", pairs.group(1))[:2]]])
    if listed := re.search(r"replica_groups=\{(\{.*?\})\}", attributes):
        rows = re.findall(r"\{([\d,]*)\}", listed.group(1))
        return np.array([[int(n) for n in row.split(",")] for row in rows])
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes):
        return _numbered(iota.group(2)).reshape(_numbers(iota.group(1)))
    if mesh := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?\)?)\))? \{([^}]*)\}", attributes
    ):
        axes = dict(re.findall(r"'([^']+)'=(\d+)", mesh.group(1)))
        sizes = [int(size) for size in axes.values()]
        ids = _numbered(mesh.group(2) or f"[{math.prod(sizes)}]").reshape(sizes)
        named = re.findall(r"'([^']+)'", mesh.group(3))
        inner = [place for place, axis in enumerate(axes) if axis in named]
        outer = [place for place, axis in enumerate(axes) if axis not in named]
        size = math.prod(sizes[place] for place in inner)
        return ids.transpose(*outer, *inner).reshape(-1, size)
    return np.arange(n_devices)[None]


def _numbered(text: str) -> np.ndarray:
    """`[8,4]T(1,0)`: 0, 1, 2... in that shape, transposed, and flat again."""
    shape, *order = re.findall(r"[\[(]([\d,]+)[\])]", text)
    ids = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return (ids.transpose(_numbers(order[0])) if order else ids).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def _axes(groups: np.ndarray, mesh_sizes: Mapping[str, int]) -> list[str]:
    """The mesh axes along which the devices of a group differ."""
    places = np.unravel_index(groups[0], tuple(mesh_sizes.values()))
    moving = [len(set(place.tolist())) > 1 for place in places]
    return [axis for axis, moves in zip(mesh_sizes, moving, strict=True) if moves]


def _matching(arrays: Iterable[Array], parameters: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The paths whose shapes are most like those of the arrays; see `_likeness`."""
    names: list[str] = []
    for array in arrays:
        likeness = {path: _likeness(array, path, shape) for path, shape in parameters.items()}
        best = max(likeness.values(), default=0)
        names += [path for path, value in likeness.items() if value == best > 0]
    return list(dict.fromkeys(names))


def _likeness(array: Array, path: str, parameter: Sequence[int]) -> int:
    """2 for the shape of the parameter or of one layer, 1 if its dimensions were moved, merged or
    split, as XLA may do around a collective, 0 otherwise.
    """
    if not array.shape:
        return 0
    candidates = [parameter] + ([parameter[1:]] if path.startswith("blocks/") else [])
    mine, best = [size for size in array.shape if size > 1], 0
    for candidate in candidates:
        theirs = [size for size in candidate if size > 1]
        if mine == theirs:
            return 2
        if len(theirs) > 1 and (_regroups(mine, theirs) or _regroups(theirs, mine)):
            best = 1
    return best


def _regroups(sizes: Sequence[int], products: Sequence[int]) -> bool:
    """Whether `sizes`, in any order, multiply up to each of `products`."""
    if not products:
        return not sizes
    first, *rest = products
    places = range(len(sizes))
    for chosen in itertools.chain(*(itertools.combinations(places, n + 1) for n in places)):
        left = [sizes[place] for place in places if place not in chosen]
        if math.prod(sizes[place] for place in chosen) == first and _regroups(left, rest):
            return True
    return False
