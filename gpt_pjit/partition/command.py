"""What a config's tables do, without devices and without compiling.

python -m gpt_pjit.partition explain --config=FILE --devices=32 [--why=PATH] [--html=FILE]
python -m gpt_pjit.partition lint --config=FILE --devices=32
python -m gpt_pjit.partition diff --config=FILE --devices=32 --against.partition.layout=zero1
python -m gpt_pjit.partition lock --config=FILE --devices=32 [--write]

All take overrides (--config.partition.layout=fsdp) and --json. `diff` says what changes from
--against to --config; --against is the file of --config, unless it names another.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
import sys
from typing import Any

import jax
from absl import app, flags
from ml_collections import config_flags

from gpt_pjit.commandline import (
    Answer,
    answer,
    config_source,
    parse_command,
    read_config,
    report_errors,
    write_page,
)
from gpt_pjit.config import Config, differences
from gpt_pjit.core.errors import EXIT_BROKEN, EXIT_CONFIG, EXIT_DONE, ConfigError, Problem
from gpt_pjit.core.model import param_shapes
from gpt_pjit.core.sharding import AXES, mesh_shape
from gpt_pjit.core.training import optimizer_findings, sharding_rules
from gpt_pjit.partition.diff import diff
from gpt_pjit.partition.gpt import explain_config
from gpt_pjit.partition.html import page
from gpt_pjit.partition.lint import lint
from gpt_pjit.partition.lock import lock_name, read_lock, write_lock
from gpt_pjit.partition.records import difference_record, explanation_record
from gpt_pjit.partition.render import (
    difference_tables,
    explanation_tables,
    findings_table,
    trials_table,
)
from gpt_pjit.partition.why import why

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
_AGAINST = config_flags.DEFINE_config_file("against", None, "diff: the side before.")
_DEVICES = flags.DEFINE_integer("devices", None, "Needed where a mesh axis is -1.", lower_bound=1)
_JSON = flags.DEFINE_bool("json", False, "JSON instead of tables.")
_WHY = flags.DEFINE_string("why", None, "explain: a parameter; what each rule says to it.")
_HTML = flags.DEFINE_string("html", None, "explain: the file for a page with pictures.")
_WRITE = flags.DEFINE_bool("write", False, "lock: accept the placement as it is now.")


def explain_command(config: Config) -> Answer:
    rules = sharding_rules(config)
    if path := _WHY.value:
        trials = why(rules, _params(config), path, _axis_sizes(config))
        return EXIT_DONE, list(map(dataclasses.asdict, trials)), [trials_table(path, trials)]
    explanation = explain_config(config, _devices(config))
    record = explanation_record(explanation, rules)
    if _HTML.value:
        title = f"{config_source(_CONFIG)} on {explanation.devices} devices"
        write_page(_HTML.value, page(explanation, rules, title))
        return EXIT_DONE, record, [f"wrote {_HTML.value}"]
    return EXIT_DONE, record, explanation_tables(explanation, rules)


def lint_command(config: Config) -> Answer:
    params = _params(config)
    findings = [
        *lint(sharding_rules(config), params, _axis_sizes(config)),
        *optimizer_findings(config, params),
    ]
    findings.sort(key=lambda finding: finding.severity)
    record = list(map(dataclasses.asdict, findings))
    if not findings:
        return EXIT_DONE, record, ["no findings"]
    code = EXIT_CONFIG if findings[0].severity == "error" else EXIT_DONE
    return code, record, [findings_table(findings, str(config_source(_CONFIG)))]


def diff_command(config: Config) -> Answer:
    against = read_config(_AGAINST)
    sides = (explain_config(side, _devices(side)) for side in (against, config))
    difference = diff(*sides)
    changes = differences(against, config)
    lines = [f"{name}: {old!r} -> {new!r}" for name, (old, new) in changes.items()]
    record = {"config": changes, **difference_record(difference)}
    tables = difference_tables(difference) if lines else ["no difference"]
    return EXIT_DONE, record, [*lines, *tables]


def lock_command(config: Config) -> Answer:
    source = config_source(_CONFIG)
    now = explain_config(config, _devices(config))
    path = source.parent / "locks" / lock_name(source.stem, now)
    if _WRITE.value:
        path.parent.mkdir(exist_ok=True)
        path.write_text(write_lock(now), encoding="utf-8")
        return EXIT_DONE, {"lock": str(path)}, [f"wrote {path}"]
    accept = shlex.join(["python", "-m", "gpt_pjit.partition", *sys.argv[1:], "--write"])
    if not path.exists():
        raise ConfigError(
            [Problem("lock", str(path), "no such file", f"write it: {accept}")], "lock"
        )
    locked = read_lock(path.read_text(encoding="utf-8"), str(path))
    if write_lock(locked) == write_lock(now):
        return EXIT_DONE, {"lock": str(path)}, [f"as locked in {path}"]
    difference = diff(locked, now)
    record = {"lock": str(path), "accept": accept, **difference_record(difference)}
    closing = f"not as locked in {path}; to accept it:\n    {accept}"
    return EXIT_BROKEN, record, [*difference_tables(difference), closing]


COMMANDS = {
    "explain": explain_command,
    "lint": lint_command,
    "diff": diff_command,
    "lock": lock_command,
}


def main(argv: list[str]) -> None:
    with report_errors():
        jax.config.update("jax_platforms", "cpu")  # and no search for what is not needed
        code, record, shown = COMMANDS[argv[1]](read_config(_CONFIG))
        answer(code, record, shown, as_json=_JSON.value)


def _params(config: Config) -> Any:
    return param_shapes(config.model, config.data.sequence_length)


def _devices(config: Config) -> int:
    sizes = {f"mesh.{axis}": getattr(config.mesh, axis) for axis in AXES}
    if _DEVICES.value is None and -1 in sizes.values():
        constraint = f"is needed for the axis that takes the rest: {sizes}"
        raise ConfigError([Problem("devices", None, constraint, "try --devices=32")], "flags")
    return _DEVICES.value or math.prod(sizes.values())


def _axis_sizes(config: Config) -> dict[str, int]:
    mesh = config.mesh
    sizes = mesh_shape(mesh.replica, mesh.data, mesh.tensor, _devices(config))
    return dict(zip(AXES, sizes, strict=True))


if __name__ == "__main__":
    app.run(main, flags_parser=lambda argv: parse_command(argv, COMMANDS))
