"""What a config's tables do, without devices and without compiling.

gpt_pjit partition explain --config=FILE --devices=32 [--why=PATH] [--html=FILE]
gpt_pjit partition lint --config=FILE --devices=32
gpt_pjit partition diff --config=FILE --devices=32 --against.partition.layout=zero1
gpt_pjit partition lock --config=FILE --devices=32 [--write]

All take overrides (--config.partition.layout=fsdp) and --json. `diff` says what changes from
--against to --config; --against is the file of --config, unless it names another. `lock` compares
with the record in locks/ beside the config.

For a model of your own, explain and lint take in place of a config a function that returns its
arrays or shapes, a table of (regex, spec) rows, and the axes of a mesh:

gpt_pjit partition lint --tree=mine.model:shapes --table=mine.model:RULES --mesh=fsdp:4,tp:2

A module is found from this folder or where it is installed. --searched takes a table whose regexes
need only be found in a path.
"""

import argparse
import dataclasses
import importlib
import math
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from gpt_pjit.commandline import Answer, Parser, positive, write_page
from gpt_pjit.config import Config, differences
from gpt_pjit.core.errors import EXIT_BROKEN, EXIT_CONFIG, EXIT_DONE, ConfigError, Problem
from gpt_pjit.core.model import param_shapes, sharding_rules
from gpt_pjit.core.sharding import AXES, LAYOUTS, ROLES, Rules, mesh_shape, place, searched
from gpt_pjit.core.training import optimizer_findings
from gpt_pjit.pages import Note, Record, compare, page, read_record, terminal, write_record
from gpt_pjit.partition.configs import explain_config
from gpt_pjit.partition.explain import explain, placement_of
from gpt_pjit.partition.lint import lint, why
from gpt_pjit.partition.views import (
    difference_blocks,
    explanation_blocks,
    findings_table,
    trials_table,
)

SEVERITIES = ("error", "warning", "note")


def explain_command(flags: argparse.Namespace) -> Answer:
    table = _table(flags)
    if flags.why:
        trials = why(table.rules, table.params, flags.why, table.sizes)
        record: Any = list(map(dataclasses.asdict, trials))
        return Answer(EXIT_DONE, record, terminal([trials_table(flags.why, trials)]))
    devices = math.prod(table.sizes.values())
    if table.config:
        record = explain_config(table.config, devices)
    else:
        layout = flags.layout or "fsdp"
        placement = place(table.rules, table.params, layout, table.sizes, "", table.roles)
        record = explain(placement, table.params)
    if flags.html:
        title = f"{table.source} on {devices} devices"
        write_page(flags.html, page(title, explanation_blocks(record, pictures=True)))
        return Answer(EXIT_DONE, record, [f"wrote {flags.html}"])
    return Answer(EXIT_DONE, record, terminal(explanation_blocks(record)))


def lint_command(flags: argparse.Namespace) -> Answer:
    table = _table(flags)
    findings = lint(table.rules, table.params, table.sizes, table.roles)
    if table.config:
        findings += optimizer_findings(table.config, table.params)
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    record = list(map(dataclasses.asdict, findings))
    if not findings:
        return Answer(EXIT_DONE, record, ["no findings"])
    code = EXIT_CONFIG if findings[0].severity == "error" else EXIT_DONE
    return Answer(code, record, terminal([findings_table(findings, table.source)]))


def diff_command(flags: argparse.Namespace) -> Answer:
    config, devices = _config_and_devices(flags)
    flags.config = dataclasses.replace(flags.against, path=flags.against.path or flags.config.path)
    against, devices_before = _config_and_devices(flags)
    before, after = explain_config(against, devices_before), explain_config(config, devices)
    changes = compare(placement_of(before), placement_of(after))
    fields = differences(against, config)
    record = {"config": fields, "before": before, "after": after, "changes": changes}
    notes = [Note(f"{name}: {old!r} -> {new!r}") for name, (old, new) in fields.items()]
    moved = difference_blocks(before, after, changes) if changes else [Note("nothing moves")]
    return Answer(EXIT_DONE, record, terminal([*notes, *moved]))


def lock_command(flags: argparse.Namespace) -> Answer:
    now = explain_config(*_config_and_devices(flags))
    path = Path(flags.config.path).parent / "locks" / lock_name(flags.config.stem, now)
    devices = [f"--devices={flags.devices}"] if flags.devices else []
    words = ["gpt_pjit", "partition", "lock", *flags.config.arguments, *devices, "--write"]
    accept = shlex.join(words)
    if flags.write:
        write_record(path, now)
        return Answer(EXIT_DONE, {"lock": str(path)}, [f"wrote {path}"])
    if not path.exists():
        raise ConfigError([f"no such file: {path}; write it: {accept}"], "lock")
    locked = read_record(path, ("layout", "mesh", "parameters"))
    changes = compare(placement_of(locked), placement_of(now))
    record = {"lock": str(path), "changes": changes, "accept": accept}
    if not changes:
        return Answer(EXIT_DONE, record, [f"as locked in {path}"])
    closing = Note(f"not as locked in {path}; to accept it:\n    {accept}")
    blocks = [*difference_blocks(locked, now, changes), closing]
    return Answer(EXIT_BROKEN, record, terminal(blocks))


def lock_name(config: str, record: Record) -> str:
    """`580m.data32.zero.json`: the config, the mesh axes above 1, the layout."""
    axes = [f"{axis}{size}" for axis, size in record["mesh"].items() if size > 1]
    return f"{config}.{'-'.join(axes) or 'one'}.{record['layout']}.json"


def define(parser: Parser) -> None:
    add = parser.add_command
    explained = add("explain", explain_command, "where each parameter lives, by which rule")
    explained.add_argument(
        "--why", metavar="PATH", help="show how each rule fares on one parameter"
    )
    explained.add_argument("--html", metavar="FILE", help="write a page with pictures")
    explained.add_argument("--layout", choices=LAYOUTS, help="for a --tree; default fsdp")
    checked = add("lint", lint_command, "what is wrong or doubtful in the tables")
    diff = add("diff", diff_command, "what changes from --against to --config")
    lock = add("lock", lock_command, "compare with the committed record")
    lock.add_argument("--write", action="store_true", help="accept the placement as it is now")
    for command in (explained, checked):
        command.add_argument("--tree", metavar="MODULE:FUNCTION", help="gives arrays or shapes")
        command.add_argument("--table", metavar="MODULE:NAME", help="the rules of --tree")
        command.add_argument("--mesh", type=_sizes, metavar="AXIS:SIZE,...", help="of --tree")
        command.add_argument(
            "--roles",
            type=_pairs,
            metavar="AXIS:ROLE,...",
            help="batch or model, for axes with uncommon names",
        )
        command.add_argument(
            "--searched", action="store_true", help="match regexes of --table anywhere in a path"
        )
    for command in (explained, checked, diff, lock):
        command.add_config()
        command.add_argument("--devices", type=positive, help="needed where a mesh axis is -1")
        command.add_json()
    diff.add_config("against", help="the side before; default the file of --config")


def _config_and_devices(flags: argparse.Namespace) -> tuple[Config, int]:
    jax.config.update("jax_platforms", "cpu")  # and no search for other devices
    config: Config = flags.config.read()
    sizes = {f"mesh.{axis}": getattr(config.mesh, axis) for axis in AXES}
    if flags.devices is None and -1 in sizes.values():
        rest = next(axis for axis, size in sizes.items() if size == -1)
        problem = f"--devices is required because {rest}=-1; e.g. --devices=32"
        raise ConfigError([problem], "flags")
    return config, flags.devices or math.prod(sizes.values())


class _Table(NamedTuple):
    """What explain and lint look at; of a model of others without a config."""

    source: str
    config: Config | None
    rules: Rules
    params: Any
    sizes: dict[str, int]
    roles: Mapping[str, str]


def _table(flags: argparse.Namespace) -> _Table:
    given = {name: getattr(flags, name) for name in ("tree", "table", "mesh")}
    if any(given.values()):
        missing = [f"--{name}" for name, value in given.items() if not value]
        if missing or flags.config.path:
            problem = f"without {' and '.join(missing)}" if missing else "with a --config"
            raise ConfigError(
                [f"--tree, --table and --mesh go together; they are given {problem}"], "flags"
            )
        jax.config.update("jax_platforms", "cpu")
        rules = _value("--table", flags.table)
        rules = searched(rules) if flags.searched else rules
        roles = {**ROLES, **(flags.roles or {})}
        return _Table(flags.table, None, rules, _value("--tree", flags.tree), flags.mesh, roles)
    config, devices = _config_and_devices(flags)
    mesh = config.mesh
    shape = mesh_shape(mesh.replica, mesh.data, mesh.tensor, devices)
    return _Table(
        flags.config.path,
        config,
        sharding_rules(config.model, config.partition),
        param_shapes(config.model, config.data.sequence_length),
        dict(zip(AXES, shape, strict=True)),
        ROLES,
    )


def _value(flag: str, text: str) -> Any:
    """What MODULE:NAME holds, or returns if it is a function."""
    module, _, name = text.partition(":")
    sys.path.insert(0, "")  # as `python -m` does
    try:
        value = getattr(importlib.import_module(module), name)
    except (ImportError, ValueError, AttributeError) as error:
        problem = Problem(flag, text, str(error), "write MODULE:NAME, and start where it is found")
        raise ConfigError([problem], "flags") from error
    finally:
        sys.path.remove("")
    return value() if callable(value) else value


def _pairs(text: str) -> dict[str, str]:
    parts = [part.partition(":") for part in text.split(",")]
    pairs = {name: value for name, _, value in parts if name and value}
    if len(pairs) < len(parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:VALUE,... with each name once")
    return pairs


def _sizes(text: str) -> dict[str, int]:
    return {axis: positive(size) for axis, size in _pairs(text).items()}
