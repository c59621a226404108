"""Reads the text of an optimized XLA program: computations, instructions, loops, source lines."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
ITEM_BYTES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
NAMED = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
ARRAY = re.compile(r"([a-z]+[0-9]*)\[([0-9,]*)\]")
CALLED = re.compile(r"(?:calls|to_apply|\w+_computations?)=(\{[^}]*\}|%?[\w.\-]+)")
BODY = r"body=%?([\w.\-]+)"
CYCLES = r'"estimated_cycles":"(\d+)"'
NO_ESTIMATE = 2**63 - 1  # what the compiler writes where its cost model gives up
# The `jax.named_scope`s of core/model and core/training, by which a plan tells what is what.
SCOPES = (
    "gather_weights|gather_layer|reduce_gradients|accumulate_gradients|optimizer|muon|embedding|"
    "loss_head|attention_projections|attention_scores|attention_softmax|attention_values|"
    "attention_kernel|dropout|mlp|norms|rotary|layers"
)
# The pass of an operation, by what JAX's transformations leave in its name; first match wins.
PASSES = (("recompute", "rematted_computation"), ("backward", r"transpose\("), ("forward", r"jvp"))
DIRECTIONS = ("forward", "recompute", "backward", "update")  # in the order of a step
UNSCOPED = "unscoped"
SCOPE = re.compile(rf"(?<![\w.])(?<!jit\()({SCOPES})(?![\w.])")
OURS = re.compile(r"/(gpt_pjit/core/\w+/\w+\.py:\d+)$")
PASS_THROUGH = ("copy", "bitcast", "reshape", "convert", "copy-done", "copy-start")


@dataclass(frozen=True)
class Array:
    """The dtype and shape that the text gives for a value."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES.get(self.dtype, 0)


@dataclass(frozen=True)
class Instruction:
    """One line of a computation, cut into the pieces that a plan looks at."""

    name: str
    opcode: str
    type_text: str
    argument_text: str
    attributes: str
    is_root: bool

    @cached_property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of its result; several for a tuple."""
        return tuple(
            Array(dtype, tuple(int(size) for size in shape.split(",") if size))
            for dtype, shape in ARRAY.findall(self.type_text)
            if dtype in ITEM_BYTES
        )

    @cached_property
    def operands(self) -> tuple[str, ...]:
        return tuple(re.findall(r"%([\w.\-]+)", self.argument_text))

    @property
    def constant(self) -> int | None:
        """The value of a constant integer."""
        return int(self.argument_text) if self.opcode == "constant" else None

    @property
    def called(self) -> list[str]:
        """The computations of a fusion, a call, or the branches of a conditional."""
        return re.findall(r"[\w.\-]+", " ".join(CALLED.findall(self.attributes)))

    @property
    def cycles(self) -> int:
        """The compiler's estimate for one execution; 0 where it makes none, as for collectives."""
        return 0 if self.is_unestimated else int(self.find(CYCLES) or 0)

    @property
    def is_unestimated(self) -> bool:
        return self.find(CYCLES) == str(NO_ESTIMATE)

    @property
    def op_name(self) -> str:
        return self.find(r'op_name="([^"]*)"')

    @property
    def scope(self) -> str:
        """The innermost scope of `SCOPES` in the name that JAX gave the operation."""
        return scope_of(self.op_name)

    def find(self, pattern: str) -> str:
        """The first group of `pattern` in the attributes, or nothing."""
        match = re.search(pattern, self.attributes)
        return match.group(1) if match else ""


@dataclass(frozen=True)
class Loop:
    """A `while` of the program, and how often its body runs each time it is reached."""

    instruction: Instruction
    trips: int


@dataclass(frozen=True)
class Visit:
    """An instruction where the step runs it: one for a loop body, however often that runs."""

    instruction: Instruction
    computation: str
    loops: tuple[Loop, ...]  # outermost first
    fused: bool  # inside a fusion, which carries the estimate for all of it

    @property
    def times(self) -> int:
        """Executions in a step."""
        return math.prod(loop.trips for loop in self.loops)


class Module:
    """The program in the text of `jax.stages.Compiled.as_text`."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        self._text = text
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if line.startswith(" "):
                if named := NAMED.match(line):
                    current[named.group(2)] = _instruction(line, named)
            elif header := HEADER.match(line):
                current = self.computations[header.group(2)] = {}
                self.entry = header.group(2) if header.group(1) else self.entry

    def walk(
        self, name: str = "", loops: tuple[Loop, ...] = (), fused: bool = False
    ) -> Iterator[Visit]:
        """Every instruction that the step runs, from the computation `name` on, or the entry."""
        name = name or self.entry
        for instruction in self.computations[name].values():
            yield Visit(instruction, name, loops, fused)
            if instruction.opcode == "while":
                loop = Loop(instruction, self.trips(name, instruction))
                yield from self.walk(instruction.find(BODY), (*loops, loop), fused)
            elif instruction.opcode in ("call", "fusion", "conditional", "async-start"):
                for called in instruction.called:
                    yield from self.walk(called, loops, fused or instruction.opcode == "fusion")

    def inside(self, instruction: Instruction) -> list[Instruction]:
        """What a fusion, or another call, holds."""
        return [i for c in instruction.called for i in self.computations[c].values()]

    def named(self, instruction: Instruction) -> Instruction:
        """What names an instruction: a fusion without a name has that of the last one inside."""
        fused = self.inside(instruction) if instruction.opcode == "fusion" else []
        return next((i for i in (instruction, *reversed(fused)) if i.op_name), instruction)

    def caller(self, computation: str) -> Instruction | None:
        """The fusion or call that runs a computation."""
        called = re.compile(rf"calls=%?{re.escape(computation)}(?![\w.\-])")
        every = (i for c in self.computations.values() for i in c.values())
        return next((i for i in every if called.search(i.attributes)), None)

    def trips(self, computation: str, loop: Instruction) -> int:
        """How often the body of a `while` in `computation` runs.

        Start, limit and step are read: windowed einsums step by two. Raises ValueError for a loop
        whose count cannot be read, since a guess would be wrong by a factor.
        """
        if known := loop.find(r'known_trip_count":\{"n":"(\d+)"'):
            return int(known)
        condition = self.computations[loop.find(r"condition=%?([\w.\-]+)")]
        body = self.computations[loop.find(BODY)]
        index, limit, inclusive = self._bound(condition)
        scope = self.computations[computation]
        made = scope[loop.operands[0]]
        start = (
            self._source(scope, made.operands[index]) if made.opcode == "tuple" else made
        ).constant
        step = self._step(body, index)
        if limit is None or start is None or not step:
            raise ValueError(f"cannot count the trips of {loop.name}")
        return max(0, -(-(limit - start + inclusive) // step))

    def _bound(self, condition: dict[str, Instruction]) -> tuple[int, int | None, int]:
        """Which element of the state is compared, the limit, and 1 if the limit still runs."""
        root = _root(condition)
        left, right = (self._source(condition, name) for name in root.operands[:2])
        is_fused = root.opcode == "fusion"  # its operands are those of the comparison inside
        compare = _root(self.computations[root.called[0]]) if is_fused else root
        inclusive = int("direction=LE" in compare.attributes)
        if left.opcode == "constant":
            left, right = right, left
        index = left.find(r"index=(\d+)")
        return int(index or 0), right.constant, inclusive

    def _step(self, body: dict[str, Instruction], index: int) -> int | None:
        source = self._source(body, _root(body).operands[index])
        operands = [self._source(body, name) for name in source.operands]
        if source.opcode == "fusion":
            inner = self.computations[source.called[0]]
            added = [i for i in inner.values() if i.opcode == "add" and i.arrays[0].shape == ()]
            operands[:0] = [self._source(inner, name) for i in added for name in i.operands]
        return next((i.constant for i in operands if i.opcode == "constant"), None)

    def _source(self, scope: dict[str, Instruction], name: str) -> Instruction:
        made = scope[name]
        while made.opcode in PASS_THROUGH:
            made = scope[made.operands[0]]
        return made

    def source(self, instruction: Instruction) -> str:
        """`gpt_pjit/core/model/loss.py:17`: the innermost line of ours that led to it, or ""."""
        number = instruction.find(r"stack_frame_id=(\d+)")
        while number in self._frames:
            place, parent = self._frames[number]
            if ours := OURS.search(place):
                return ours.group(1)
            number = parent if parent != number else ""
        return ""

    @cached_property
    def _frames(self) -> dict[str, tuple[str, str]]:
        """`FILE:LINE` of each stack frame, and the number of the frame that called it."""
        files, locations = self._table("FileNames"), self._table("FileLocations")
        frames = {}
        for number, row in self._table("StackFrames").items():
            frame = dict(re.findall(r"(\w+)=(\d+)", row))
            at = dict(re.findall(r"(\w+)=(\d+)", locations[frame["file_location_id"]]))
            file = files[at["file_name_id"]].strip('"')
            frames[number] = f"{file}:{at['line']}", frame.get("parent_frame_id", "")
        return frames

    def _table(self, name: str) -> dict[str, str]:
        found = re.search(rf"^{name}\n((?:\d+ .*\n)+)", self._text, re.MULTILINE)
        rows = found.group(1).splitlines() if found else []
        return dict(row.split(" ", 1) for row in rows)


def scope_of(op_name: str) -> str:
    """The innermost scope of `SCOPES` in a name."""
    return (SCOPE.findall(op_name) or [UNSCOPED])[-1]


def direction_of(op_name: str) -> str:
    return next((name for name, regex in PASSES if re.search(regex, op_name)), "update")


def _root(computation: dict[str, Instruction]) -> Instruction:
    return next(i for i in computation.values() if i.is_root)


def _instruction(line: str, named: re.Match[str]) -> Instruction:
    start = named.end()
    end = _closing(line, start) if line[start] == "(" else line.index(" ", start)
    opening = line.index("(", end)
    closing = _closing(line, opening)
    return Instruction(
        name=named.group(2),
        opcode=line[end:opening].strip(),
        type_text=line[start:end],
        argument_text=line[opening + 1 : closing - 1],
        attributes=line[closing:],
        is_root=named.group(1) is not None,
    )


def _closing(line: str, start: int) -> int:
    """The index after the parenthesis that closes the first one from `start` on."""
    depth = 0
    for match in re.compile(r"[()]").finditer(line, start):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return match.end()
    raise ValueError(f"unbalanced: {line[:200]}")
