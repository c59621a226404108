"""Imports run strictly downward through the floors of BUILD.md; there are no exemptions."""

import ast
import sys

from tests.helpers import ROOT

PACKAGE = ROOT / "gpt_pjit"
FLOORS = (
    ("core.errors", "core.chips", "core.cores", "core.console"),
    ("config", "core.sharding", "core.cluster", "core.files"),
    ("core.parameters", "core.validation"),
    ("core.model", "core.scaling", "core.tokens", "core.runtime"),
    ("core.training", "core.checkpoints"),
    ("core.train",),
    ("commandline", "checkpoint_arrays", "pages", "trackers"),
    ("trained",),
    ("partition", "coordinates", "data", "generate"),
    ("plan", "checkpoint", "evaluate", "doctor"),
    ("hf", "report"),
    ("main", "__main__"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
PURE = {"jax", "numpy", "gpt_pjit"}  # all that the partition engine may import


def room_of(module):
    """`core.model` of `gpt_pjit.core.model.gpt`, `plan` of `gpt_pjit.plan.hlo`."""
    parts = module.split(".")[1:]
    return ".".join(parts[: 2 if parts[0] == "core" else 1])


def modules():
    """(path, its dotted name) of every module; a package is named by its folder."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield path, name.removesuffix(".__init__")


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{path}: relative import; write gpt_pjit.ROOM")
        if isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def imports_between_rooms():
    """(module, its room, what it imports of another room, that room)."""
    for path, name in modules():
        if name in ("gpt_pjit", "gpt_pjit.core"):
            continue
        for target in imported_modules(path):
            if target.startswith("gpt_pjit.") and room_of(target) != room_of(name):
                yield name, room_of(name), target, room_of(target)


def test_imports_run_downward():
    wrong = [
        f"{module} imports {target}, which is not below it"
        for module, room, target, other in imports_between_rooms()
        if FLOOR[other] >= FLOOR[room]
    ]
    assert not wrong, "\n".join(wrong)


def test_the_core_imports_no_tool():
    wrong = [
        f"{module} imports {target}"
        for module, room, target, other in imports_between_rooms()
        if room.startswith("core.") and not other.startswith("core.") and other != "config"
    ]
    assert not wrong, "\n".join(wrong)


def test_rooms_are_entered_by_their_door():
    """Another room is imported through its `__init__`, not through a file inside it."""
    wrong = [
        f"{module} imports {target}; import gpt_pjit.{other}"
        for module, _, target, other in imports_between_rooms()
        if target != f"gpt_pjit.{other}"
    ]
    assert not wrong, "\n".join(wrong)


def test_the_partition_engine_is_pure():
    """It knows nothing of our model, our config, files or flags."""
    for path in (PACKAGE / "core" / "sharding").glob("*.py"):
        imported = set(imported_modules(path))
        assert {name.split(".")[0] for name in imported} <= PURE | sys.stdlib_module_names, path
        rooms = {room_of(name) for name in imported if name.startswith("gpt_pjit.")}
        assert rooms <= {"core.errors", "core.sharding"}, path


def test_every_room_has_a_floor():
    rooms = {room_of(name) for _, name in modules() if name not in ("gpt_pjit", "gpt_pjit.core")}
    assert rooms == set(FLOOR)
