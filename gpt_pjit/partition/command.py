"""What a config's tables do, without devices and without compiling.

gpt_pjit partition explain --config=FILE --devices=32 [--why=PATH] [--html=FILE]
gpt_pjit partition lint --config=FILE --devices=32
gpt_pjit partition diff --config=FILE --devices=32 --against.partition.layout=zero1
gpt_pjit partition lock --config=FILE --devices=32 [--write]

All take overrides (--config.partition.layout=fsdp) and --json. `diff` says what changes from
--against to --config; --against is the file of --config, unless it names another. `lock` compares
with the record in locks/ beside the config.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import shlex
from pathlib import Path
from typing import Any

import jax

from gpt_pjit.commandline import Answer, Parser, positive, write_page
from gpt_pjit.config import Config, differences
from gpt_pjit.core.errors import EXIT_BROKEN, EXIT_CONFIG, EXIT_DONE, ConfigError, Problem
from gpt_pjit.core.model import param_shapes, sharding_rules
from gpt_pjit.core.sharding import AXES, Rules, mesh_shape
from gpt_pjit.core.training import optimizer_findings
from gpt_pjit.pages import Note, Record, compare, page, read_record, terminal, write_record
from gpt_pjit.partition.explain import explain_config, placement_of
from gpt_pjit.partition.lint import lint, why
from gpt_pjit.partition.views import (
    difference_blocks,
    explanation_blocks,
    findings_table,
    trials_table,
)


def explain_command(flags: argparse.Namespace) -> Answer:
    config, devices = _config_and_devices(flags)
    if flags.why:
        rules, params, sizes = _table(config, devices)
        trials = why(rules, params, flags.why, sizes)
        record: Any = list(map(dataclasses.asdict, trials))
        return Answer(EXIT_DONE, record, terminal([trials_table(flags.why, trials)]))
    record = explain_config(config, devices)
    if flags.html:
        title = f"{flags.config.path} on {devices} devices"
        write_page(flags.html, page(title, explanation_blocks(record, pictures=True)))
        return Answer(EXIT_DONE, record, [f"wrote {flags.html}"])
    return Answer(EXIT_DONE, record, terminal(explanation_blocks(record)))


def lint_command(flags: argparse.Namespace) -> Answer:
    config, devices = _config_and_devices(flags)
    rules, params, sizes = _table(config, devices)
    findings = [*lint(rules, params, sizes), *optimizer_findings(config, params)]
    findings.sort(key=lambda finding: finding.severity)
    record = list(map(dataclasses.asdict, findings))
    if not findings:
        return Answer(EXIT_DONE, record, ["no findings"])
    code = EXIT_CONFIG if findings[0].severity == "error" else EXIT_DONE
    return Answer(code, record, terminal([findings_table(findings, flags.config.path)]))


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
    commands = parser.add_subparsers(dest="command", required=True)
    explain = commands.add_parser("explain", help="where each parameter lives, by which rule")
    explain.set_defaults(run=explain_command)
    explain.add_argument("--why", metavar="PATH", help="show how each rule fares on this parameter")
    explain.add_argument("--html", metavar="FILE", help="write a page with pictures")
    checked = commands.add_parser("lint", help="what is wrong or doubtful in the tables")
    checked.set_defaults(run=lint_command)
    diff = commands.add_parser("diff", help="what changes from --against to --config")
    diff.set_defaults(run=diff_command)
    lock = commands.add_parser("lock", help="compare with the committed record")
    lock.set_defaults(run=lock_command)
    lock.add_argument("--write", action="store_true", help="accept the placement as it is now")
    for command in (explain, checked, diff, lock):
        command.add_config()
        command.add_argument("--devices", type=positive, help="needed where a mesh axis is -1")
        command.add_json()
    diff.add_config("against", help="the side before; default the file of --config")


def _config_and_devices(flags: argparse.Namespace) -> tuple[Config, int]:
    jax.config.update("jax_platforms", "cpu")  # and no search for other devices
    config: Config = flags.config.read()
    sizes = {f"mesh.{axis}": getattr(config.mesh, axis) for axis in AXES}
    if flags.devices is None and -1 in sizes.values():
        constraint = f"is needed for the axis that takes the rest: {sizes}"
        raise ConfigError([Problem("devices", None, constraint, "try --devices=32")], "flags")
    return config, flags.devices or math.prod(sizes.values())


def _table(config: Config, devices: int) -> tuple[Rules, Any, dict[str, int]]:
    """The rules, the shapes that they place, and the size of each axis."""
    mesh = config.mesh
    sizes = mesh_shape(mesh.replica, mesh.data, mesh.tensor, devices)
    params = param_shapes(config.model, config.data.sequence_length)
    return (
        sharding_rules(config.model, config.partition),
        params,
        dict(zip(AXES, sizes, strict=True)),
    )
