"""Imports run strictly downward through the floors of BUILD.md."""

import ast
import sys

from tests.helpers import ROOT

FLOORS = (
    ("errors", "chips", "cores"),
    ("config", "partition"),
    ("validation",),
    ("model", "data", "checkpoint", "runtime"),
    ("training",),
    ("trained",),
    ("generate", "plan"),
    ("evaluate",),
    ("train", "cli", "hf"),
    ("main",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
PURE = {"jax", "optax", "rich", "gpt_pjit"}  # all that partition/ may import; rich draws its tables


def floor_of(path, room):
    """`python -m gpt_pjit.ROOM` runs ROOM/__main__.py: a command line is the top floor."""
    return len(FLOORS) if path.name == "__main__.py" else FLOOR[room]


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{path}: relative import; write gpt_pjit.ROOM")
        if isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def imported_rooms(path):
    for name in imported_modules(path):
        if name.startswith("gpt_pjit."):
            yield name.split(".")[1], name


def test_imports_run_downward():
    package = ROOT / "gpt_pjit"
    wrong = []
    for path in package.rglob("*.py"):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        if room == "__init__" or path.name == "__main__.py":  # a command line may import anything
            continue
        for target, name in imported_rooms(path):
            if target != room and FLOOR[target] >= floor_of(path, room):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}, which is not below it")
    assert not wrong, "\n".join(wrong)


def test_rooms_are_entered_by_their_door():
    """Another room is imported through its `__init__`, not through a file inside it."""
    package = ROOT / "gpt_pjit"
    wrong = []
    for path in package.rglob("*.py"):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        for target, name in imported_rooms(path):
            if target != room and name.count(".") > 1:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}; import gpt_pjit.{target}")
    assert not wrong, "\n".join(wrong)


def test_partition_is_pure():
    """Apart from its command line it knows nothing of our model, our config, files or flags."""
    for path in (ROOT / "gpt_pjit" / "partition").glob("*.py"):
        if path.name == "__main__.py":
            continue
        tops = {name.split(".")[0] for name in imported_modules(path)}
        assert tops <= PURE | sys.stdlib_module_names, path
        assert {room for room, _ in imported_rooms(path)} <= {"errors", "partition"}, path


def test_every_room_has_a_floor():
    package = ROOT / "gpt_pjit"
    rooms = {
        p.name.removesuffix(".py") for p in package.iterdir() if p.suffix == ".py" or p.is_dir()
    }
    rooms -= {"__init__", "__pycache__"}
    assert rooms == set(FLOOR)
