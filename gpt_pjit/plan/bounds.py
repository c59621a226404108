"""What the compiler has no cycles for: kernels, and all that a GPU runs, by a roofline; the rest by
name and number.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping

from gpt_pjit.core.chips import Chip
from gpt_pjit.pages import Record
from gpt_pjit.plan.collectives import collective_of
from gpt_pjit.plan.hlo import Instruction, Module

KERNEL = "tpu_custom_call"  # what `pl.pallas_call` compiles to
TARGET = r'custom_call_target="([^"]*)"'
# They name, place or control; transfers have a timeline.
NO_WORK = re.compile(
    "parameter|constant|tuple|get-tuple-element|bitcast|partition-id|after-all|while|call|"
    "conditional|async-update|.*-done|copy-start|slice-start|AllocateBuffer|ConcatBitcast|"
    "AssumeGatherIndicesInBound"
)
READS_A_PART = ("dynamic-slice", "slice", "gather")
UNCHANGED = ("bitcast", "tuple")
SCALARS = "arithmetic of scalars"


def cycles_of(
    module: Module, instruction: Instruction, scope: Mapping[str, Instruction], chip: Chip
) -> float:
    """The compiler's estimate of one execution, or the lower bound of a kernel or on a GPU."""
    if chip.is_gpu:
        return gpu_bound(module, instruction, scope, chip) * chip.clock
    if instruction.opcode != "custom-call" or instruction.find(TARGET) != KERNEL:
        return instruction.cycles
    return kernel_bound(instruction, scope, chip)["seconds"] * chip.clock


def gpu_bound(
    module: Module, instruction: Instruction, scope: Mapping[str, Instruction], chip: Chip
) -> float:
    """Seconds of one execution: its products at the peak, or its bytes at the memory's bandwidth.

    Of an array that it only slices, or writes a part of in place, the part counts.
    """
    kind = instruction.find(TARGET) or instruction.opcode
    if NO_WORK.fullmatch(kind) or collective_of(module, instruction):
        return 0.0
    if instruction.opcode == "fusion":
        nbytes = _bytes_moved(module.computations[instruction.called[0]])
    elif instruction.opcode in READS_A_PART:
        nbytes = 2 * _bytes(instruction)
    else:
        nbytes = _bytes_of_shapes(instruction, scope)
    return _roofline(_product_flops(module, instruction, scope), nbytes, chip)


def _roofline(flops: int, nbytes: int, chip: Chip) -> float:
    return max(flops / chip.peak_flops, nbytes / chip.hbm_bandwidth)


def _product_flops(module: Module, product: Instruction, scope: Mapping[str, Instruction]) -> int:
    """Of a dot, of a library's product, or of those in a fusion."""
    if product.opcode == "fusion":
        bodies = [module.computations[name] for name in product.called]
        return sum(_product_flops(module, i, body) for body in bodies for i in body.values())
    dims = product.find(r'lhs_contracting_dim(?:ension)?s"?[=:][{\[]([^}\]]*)')
    if not dims or product.opcode not in ("dot", "custom-call"):
        return 0
    left = scope[product.operands[0]].arrays[0].shape
    contracted = math.prod(left[int(dim)] for dim in re.findall(r"\d+", dims))
    return 2 * math.prod(product.arrays[0].shape) * contracted


def _bytes_moved(body: Mapping[str, Instruction]) -> int:
    """Read and written by a fusion."""
    source = {name: _unchanged(body, name) for name in body}
    read: defaultdict[str, int] = defaultdict(int)
    for i in body.values():
        if i.opcode in UNCHANGED:
            continue
        for place, operand in enumerate(i.operands):
            if i.opcode in READS_A_PART and place == 0:
                part = _bytes(i)
            elif i.opcode == "dynamic-update-slice" and place == 0:
                part = 0
            else:
                part = _bytes(body[operand])
            read[source[operand]] = max(read[source[operand]], part)
    written = 0
    root = next(i for i in body.values() if i.is_root)
    for name in root.operands if root.opcode == "tuple" else (root.name,):
        result = body[source[name]]
        in_place = result.opcode == "dynamic-update-slice"
        written += _bytes(body[result.operands[1]] if in_place else result)
    return written + sum(n for name, n in read.items() if body[name].opcode == "parameter")


def _unchanged(body: Mapping[str, Instruction], name: str) -> str:
    """What an instruction is another view of."""
    while body[name].opcode in UNCHANGED and body[name].operands:
        name = body[name].operands[0]
    return name


def _bytes_of_shapes(instruction: Instruction, scope: Mapping[str, Instruction]) -> int:
    """Of operands and results."""
    operands = (scope[name] for name in dict.fromkeys(instruction.operands))
    return sum(map(_bytes, (instruction, *operands)))


def _bytes(instruction: Instruction) -> int:
    return sum(array.nbytes for array in instruction.arrays)


def kernel_bound(instruction: Instruction, scope: Mapping[str, Instruction], chip: Chip) -> Record:
    """The time of one execution by FLOPs at the peak or bytes at the memory's bandwidth.

    Both are those of its `pl.CostEstimate`; without one, the bytes of operands and results.
    """
    stated = instruction.find(r'"cost_estimate":\{([^}]*)\}')
    numbers = {name: int(n) for name, n in re.findall(r'"(\w+)":"(\d+)"', stated)}
    flops = numbers.get("flops", 0)
    nbytes = numbers.get("bytes_accessed", _bytes_of_shapes(instruction, scope))
    return {
        "flops": flops,
        "bytes": nbytes,
        "basis": "its cost estimate" if stated else "the bytes of its shapes",
        "seconds": _roofline(flops, nbytes, chip),
    }


def kernels_of(module: Module, chip: Chip) -> list[Record]:
    """Each kernel with its bound, the most cycles of a step first."""
    times: Counter[tuple[str, tuple[tuple[str, object], ...]]] = Counter()
    for visit in module.walk():
        instruction = visit.instruction
        if instruction.find(TARGET) == KERNEL:
            bound = kernel_bound(instruction, module.computations[visit.computation], chip)
            name = instruction.op_name.removesuffix("/pallas_call").rsplit("/", 1)[-1]
            times[name or instruction.name, tuple(bound.items())] += visit.times
    found = [{"name": name, "times": n, **dict(bound)} for (name, bound), n in times.items()]
    return sorted(found, key=lambda kernel: -kernel["times"] * kernel["seconds"])


def unestimated(module: Module) -> list[Record]:
    """What has no estimate and counts as nothing, by name, with its executions in a step."""
    times: Counter[str] = Counter()
    for visit in module.walk():
        instruction = visit.instruction
        kind = instruction.find(TARGET) or instruction.opcode
        if visit.fused or instruction.cycles or kind == KERNEL or NO_WORK.fullmatch(kind):
            continue
        if collective_of(module, instruction):
            continue
        if all(math.prod(array.shape) == 1 for array in instruction.arrays):
            times[SCALARS] += visit.times
        else:
            named = (instruction, *reversed(module.inside(instruction)))
            of = next((i.op_name for i in named if i.op_name), "")
            times[f"{kind}: {of.rsplit('/', 1)[-1]}".removesuffix(": ")] += visit.times
    return [{"name": name, "times": n} for name, n in times.most_common()]
