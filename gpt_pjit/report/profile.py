"""The traces of a run, read: seconds of a step by the scopes and passes of a plan.

A trace names the instructions that devices ran. Which scope each is of, the program says, a copy of
which lies in the same file; JAX's reader does not give it, so it is read by its few fields here.
"""

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from jax.profiler import ProfileData

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.pages import Record
from gpt_pjit.plan import direction_of, scope_of

STEP = "train_step"  # in the name of the step's program
CONTAINERS = ("while", "call", "conditional")  # whose time is that of what they run
# Fields of xplane.proto (openxla/xla, tsl/profiler) and hlo.proto (xla/service), by number.
FIELDS: dict[str, dict[str, tuple[int, str]]] = {
    "Space": {"planes": (1, "Plane")},
    "Plane": {"name": (2, "string"), "events": (4, "Event")},
    "Event": {"metadata": (2, "EventMetadata")},  # a map's entry
    "EventMetadata": {"name": (2, "string"), "stats": (5, "Stat")},
    "Stat": {"program": (6, "bytes")},
    "Program": {"module": (1, "Module")},
    "Module": {"name": (1, "string"), "computations": (3, "Computation")},
    "Computation": {"instructions": (2, "Instruction"), "id": (5, "number")},
    "Instruction": {
        "name": (1, "string"),
        "opcode": (2, "string"),
        "metadata": (7, "OpMetadata"),
        "called": (38, "number"),
    },
    "OpMetadata": {"op_name": (2, "string")},
}
REPEATED = ("planes", "events", "stats", "computations", "instructions", "called")
KINDS = {"bytes": "TYPE_BYTES", "number": "TYPE_INT64", "string": "TYPE_STRING"}


def profiles(workdir: Path) -> dict[str, Path]:
    """The newest trace of each folder of `WORKDIR/profile`: `{"100": FILE, ...}`, by step."""
    files = sorted((workdir / "profile").glob("*/plugins/profile/*/*.xplane.pb"))
    return dict(sorted(((f.parents[3].name, f) for f in files), key=lambda found: _step(found[0])))


def read_profile(path: Path) -> Record:
    """What devices did in a step, on average over steps and devices; ConfigError if it is no trace.

    `steps` and `devices` traced; `seconds` of all instructions of a device in a step, which may
    run at the same time; `scopes`: {scope: {pass: seconds}}, the largest first, as in a plan;
    `operations`: scope, direction, name, seconds and times a step of each kind.
    """
    try:
        content = path.read_bytes()
        programs = _programs(content)
        planes = list(ProfileData.from_serialized_xspace(content).planes)
    except Exception as error:  # of protobuf and of JAX's reader, which share no class
        raise ConfigError([f"{path} is not a trace: {error}"], "profile") from None
    seconds: dict[tuple[str, str, str], float] = defaultdict(float)
    times: Counter[tuple[str, str, str]] = Counter()
    runs: set[tuple[Any, Any]] = set()
    for plane in planes:
        for event in (event for line in plane.lines for event in line.events):
            stats = dict(event.stats)
            instruction, module = stats.get("hlo_op"), str(stats.get("hlo_module", ""))
            if instruction is None or STEP not in module:
                continue
            runs.add((stats.get("run_id"), stats.get("device_ordinal", plane.name)))
            program = f"{module}({stats.get('program_id')})"
            opcode, op_name = programs.get((program, str(instruction)), ("", ""))
            if opcode in CONTAINERS:
                continue
            name = op_name.rsplit("/", 2)[-1] or opcode or re.sub(r"[.\d]+$", "", str(instruction))
            alike = scope_of(op_name), direction_of(op_name), name
            seconds[alike] += event.duration_ns / 1e9
            times[alike] += 1
    each = max(len(runs), 1)  # runs of the step on a device
    operations: list[Record] = []
    scopes: dict[str, dict[str, float]] = {}
    for (scope, direction, name), total in sorted(seconds.items(), key=lambda item: -item[1]):
        numbers = {"seconds": total / each, "times": times[scope, direction, name] / each}
        operations.append({"scope": scope, "direction": direction, "name": name} | numbers)
        passes = scopes.setdefault(scope, {})
        passes[direction] = passes.get(direction, 0.0) + total / each
    return {
        "steps": len({run for run, _ in runs}),
        "devices": len({device for _, device in runs}),
        "seconds": sum(seconds.values()) / each,
        "scopes": dict(sorted(scopes.items(), key=lambda item: -sum(item[1].values()))),
        "operations": operations,
    }


def _programs(content: bytes) -> dict[tuple[str, str], tuple[str, str]]:
    """Opcode and JAX's name by program, as `jit_train_step(4)`, and instruction.

    A trace holds every program that the process has compiled: several steps share names.
    """
    found = {}
    for plane in _parse("Space", content).planes:
        for event in plane.events if plane.name == "/host:metadata" else ():
            for stat in event.metadata.stats if STEP in event.metadata.name else ():
                computations = _parse("Program", stat.program).module.computations
                inside = {c.id: [i.metadata.op_name for i in c.instructions] for c in computations}
                for i in (i for c in computations for i in c.instructions):
                    # The rule of `gpt_pjit.plan.hlo.Module.named`.
                    called = i.called if i.opcode == "fusion" else ()
                    fused = (name for c in called for name in reversed(inside[c]) if name)
                    op_name = i.metadata.op_name or next(fused, "")
                    found[event.metadata.name, i.name] = i.opcode, op_name
    return found


def _parse(kind: str, content: bytes) -> Any:
    return MESSAGES[f"profile.{kind}"].FromString(content)


def _messages() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="profile.proto", package="profile")
    file.syntax = "proto3"
    kinds = descriptor_pb2.FieldDescriptorProto
    for kind, fields in FIELDS.items():
        message = file.message_type.add(name=kind)
        for name, (number, of) in fields.items():
            field = message.field.add(name=name, number=number)
            field.label = kinds.LABEL_REPEATED if name in REPEATED else kinds.LABEL_OPTIONAL
            if of in FIELDS:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".profile.{of}"
            else:
                field.type = getattr(kinds, KINDS[of])
    return message_factory.GetMessages([file], descriptor_pool.DescriptorPool())


def _step(name: str) -> tuple[int, str]:
    return int(name.partition(".")[0]) if name.partition(".")[0].isdecimal() else 0, name


MESSAGES = _messages()
