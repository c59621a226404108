"""Every collective of a compiled step: what it moves, how often, where, and for which array."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gpt_pjit.core.model import Model
from gpt_pjit.core.sharding import paths_and_leaves, shard_shape, without_batch_axes
from gpt_pjit.pages import Record
from gpt_pjit.plan.hlo import Array, Instruction, Loop, Module, Visit

KINDS = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")
LAYER_LOOP = "layer loop"
LOOPS = {"layers": LAYER_LOOP, "accumulate_gradients": "microbatch loop"}  # by scope
OUR_LOOP = re.compile(rf"\b({'|'.join(LOOPS)})\)*/while$")  # `jit(step)/jvp(layers)/while`
SCATTER_FUSION = "all-reduce-scatter"  # how the TPU compiler writes a reduce-scatter


@dataclass(frozen=True)
class Collective:
    """A collective of the step, with all that the promises and the tables ask about it.

    `arrays` are whole over the group; `parameters` are the paths whose shape they have.
    """

    kind: str
    arrays: tuple[Array, ...]
    axes: tuple[str, ...]  # of the mesh
    group_size: int
    times: int  # a step
    loops: tuple[str, ...]  # outermost first
    parameters: tuple[str, ...]
    op_name: str
    source: str

    @property
    def nbytes(self) -> int:
        """Bytes that a device sends each time this runs, by the formulas of a ring."""
        whole, n = sum(array.nbytes for array in self.arrays), self.group_size
        if self.kind == "collective-permute":
            return whole
        return whole * (n - 1) // n * (2 if self.kind == "all-reduce" else 1)

    @property
    def total_bytes(self) -> int:
        return self.nbytes * self.times

    @property
    def dtype(self) -> str:
        return "+".join(sorted({array.dtype for array in self.arrays}))

    @property
    def where(self) -> str:
        return " in ".join(reversed(self.loops)) or "outside"

    @property
    def is_reduction(self) -> bool:
        return self.kind in ("all-reduce", "reduce-scatter")

    def __str__(self) -> str:
        of = ", ".join(self.parameters) or self.op_name
        return f"{self.kind} {self.dtype} of {of}: {self.where}"

    def record(self) -> Record:
        return {
            "kind": self.kind,
            "dtype": self.dtype,
            "shapes": [list(array.shape) for array in self.arrays],
            "axes": list(self.axes),
            "devices": self.group_size,
            "bytes": self.nbytes,
            "times": self.times,
            "total_bytes": self.total_bytes,
            "where": self.where,
            "parameters": list(self.parameters),
            "op_name": self.op_name,
            "source": self.source,
        }


def collectives_of(
    module: Module, mesh_sizes: Mapping[str, int], parameters: Mapping[str, tuple[int, ...]]
) -> list[Collective]:
    """In the order of the program; `parameters` are shapes by path, from `whole_shapes`."""
    found, seen = [], set()
    for visit in module.walk():
        kind = visit.instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        # An asynchronous collective appears again in the fusions that wait for it.
        key = visit.instruction.find(r'async_collective_name="([^"]*)"') or visit.instruction.name
        if key not in seen:
            seen.add(key)
            found.append(_collective(module, visit, kind, mesh_sizes, parameters))
    return found


def whole_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter on a device once it is gathered over the batch axes."""
    specs = dict(paths_and_leaves(model.placement.compute))
    return {
        path: shard_shape(leaf.shape, without_batch_axes(specs[path]), model.mesh.shape)
        for path, leaf in paths_and_leaves(model.params)
    }


def _collective(
    module: Module,
    visit: Visit,
    kind: str,
    mesh_sizes: Mapping[str, int],
    parameters: Mapping[str, tuple[int, ...]],
) -> Collective:
    instruction = named = visit.instruction
    groups = replica_groups(instruction.attributes, math.prod(mesh_sizes.values()))
    arrays = _whole_arrays(instruction, kind, len(groups[0]))
    if not instruction.op_name:  # inside a fusion, which says where it comes from
        named = _caller(module, visit.computation) or instruction
    return Collective(
        kind="reduce-scatter" if visit.computation.startswith(SCATTER_FUSION) else kind,
        arrays=arrays,
        axes=_axes(groups, mesh_sizes),
        group_size=len(groups[0]),
        times=visit.times,
        loops=tuple(map(loop_label, visit.loops)),
        parameters=_matching(arrays, parameters),
        op_name=named.op_name,
        source=module.source(named),
    )


def _caller(module: Module, computation: str) -> Instruction | None:
    every = itertools.chain.from_iterable(c.values() for c in module.computations.values())
    called = re.compile(rf"calls=%?{re.escape(computation)}(?![\w.\-])")
    return next((i for i in every if called.search(i.attributes)), None)


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


def _axes(groups: np.ndarray, mesh_sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the devices of a group differ."""
    places = np.unravel_index(groups[0], tuple(mesh_sizes.values()))
    moving = [len(set(place.tolist())) > 1 for place in places]
    return tuple(axis for axis, moves in zip(mesh_sizes, moving, strict=True) if moves)


def _matching(
    arrays: Iterable[Array], parameters: Mapping[str, tuple[int, ...]]
) -> tuple[str, ...]:
    """The paths whose shapes are most like those of the arrays; see `_likeness`."""
    names: list[str] = []
    for array in arrays:
        likeness = {path: _likeness(array, path, shape) for path, shape in parameters.items()}
        best = max(likeness.values(), default=0)
        names += [path for path, value in likeness.items() if value == best > 0]
    return tuple(dict.fromkeys(names))


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
