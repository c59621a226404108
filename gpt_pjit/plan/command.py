"""What a run will take on hardware that is not here: compiles its training step and reads it.

python -m gpt_pjit.plan --config=FILE --topology=v3-32 [--html=FILE] [--dollars_per_chip_hour=2]
python -m gpt_pjit.plan --config=FILE --topology=v3-32 --search [--microbatches=2,4 --remat=full]
python -m gpt_pjit.plan --config=FILE --topology=v3-32 --check [--write]
python -m gpt_pjit.plan diff --config=FILE --topology=v3-32 --against.partition.layout=zero1
python -m gpt_pjit.plan diff --config=FILE --topology=v3-32 --against_revision=HEAD~1

All take overrides (--config.optim.microbatches=2) and --json. No TPU is needed.
"""

from __future__ import annotations

import os
import shlex
import sys
from importlib.util import find_spec

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
from gpt_pjit.core.errors import EXIT_BROKEN, EXIT_DONE, ConfigError, Problem
from gpt_pjit.plan.arguments import plain_arguments
from gpt_pjit.plan.topology import Topology, find_topology

CUDA_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
_AGAINST = config_flags.DEFINE_config_file("against", None, "diff: the side before.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "Accelerators by their console name: v3-32.")
_JSON = flags.DEFINE_bool("json", False, "JSON instead of tables.")
_HTML = flags.DEFINE_string("html", None, "The file for a page with pictures.")
_DOLLARS = flags.DEFINE_float("dollars_per_chip_hour", None, "For the cost in dollars.")
_CHECK = flags.DEFINE_bool("check", False, "Compare with the record in plans/ by the config.")
_WRITE = flags.DEFINE_bool("write", False, "With --check: accept the plan as it is now.")
_SEARCH = flags.DEFINE_bool("search", False, "Compile other settings too, and rank them.")
_MICROBATCHES = flags.DEFINE_list("microbatches", None, "Search: these; default all that divide.")
_REMAT = flags.DEFINE_list("remat", "none,selective,full", "Search: these policies.")
_LAYOUTS = flags.DEFINE_list("layouts", None, "Search: these; default that of the config.")
_TENSOR = flags.DEFINE_list("tensor", None, "Search: these sizes; default that of the config.")
_REVISION = flags.DEFINE_string("revision", None, "diff: the git revision after.")
_AGAINST_REVISION = flags.DEFINE_string("against_revision", None, "diff: the git revision before.")


def plan_command(config: Config, topology: Topology) -> Answer:
    from gpt_pjit.plan.plan import make_plan, plan_record
    from gpt_pjit.plan.render import plan_tables

    plan = make_plan(config, topology)
    code = EXIT_DONE if plan.is_good else EXIT_BROKEN
    record = plan_record(plan, _DOLLARS.value)
    if _HTML.value:
        from gpt_pjit.plan.html import page

        title = f"{config_source(_CONFIG)} on {topology.name}"
        write_page(_HTML.value, page(plan, title, _DOLLARS.value))
        return code, record, [f"wrote {_HTML.value}"]
    return code, record, plan_tables(plan, _DOLLARS.value)


def check_command(config: Config, topology: Topology) -> Answer:
    from gpt_pjit.plan.plan import make_plan, plan_record
    from gpt_pjit.plan.record import changes, kept, read_record, write_record

    source = config_source(_CONFIG)
    path = source.parent / "plans" / f"{source.stem}.{topology.name}.toml"
    accept = shlex.join(["python", "-m", "gpt_pjit.plan", *sys.argv[1:], "--write"])
    if not path.exists() and not _WRITE.value:
        problem = Problem("record", str(path), "no such file", f"write it: {accept}")
        raise ConfigError([problem], "plan")
    now = kept(plan_record(make_plan(config, topology)))
    if _WRITE.value:
        path.parent.mkdir(exist_ok=True)
        path.write_text(write_record(now), encoding="utf-8")
        return EXIT_DONE, {"record": str(path)}, [f"wrote {path}"]
    lines = changes(read_record(path.read_text(encoding="utf-8"), str(path)), now)
    if not lines:
        return EXIT_DONE, {"record": str(path), "changes": []}, [f"as recorded in {path}"]
    closing = f"not as recorded in {path}; to accept it:\n    {accept}"
    return EXIT_BROKEN, {"record": str(path), "changes": lines, "accept": accept}, [*lines, closing]


def search_command(config: Config, topology: Topology) -> Answer:
    from gpt_pjit.plan.search import candidates, ranked, search, search_tables

    wanted = {
        "optim.microbatches": _MICROBATCHES.value,
        "model.remat": _REMAT.value,
        "partition.layout": _LAYOUTS.value,
        "mesh.tensor": _TENSOR.value,
    }
    found, interrupted = search(
        candidates(config, topology, wanted), topology, plain_arguments(sys.argv[1:])
    )
    rows = ranked(found)
    code = EXIT_DONE if any(row.fits for row in rows) else EXIT_BROKEN
    record = [row.record() for row in rows]
    return interrupted or code, record, search_tables(rows, topology)


def diff_command(config: Config, topology: Topology) -> Answer:
    from gpt_pjit.plan.plan import make_plan, plan_record
    from gpt_pjit.plan.render import change_tables
    from gpt_pjit.plan.revisions import record_at

    if _REVISION.value or _AGAINST_REVISION.value:
        revisions = (_AGAINST_REVISION.value, _REVISION.value)
        before, after = (
            record_at(revision, plain_arguments(sys.argv[1:])) for revision in revisions
        )
        lines = ["revision: " + " -> ".join(name or "as it is here" for name in revisions)]
    else:
        against = read_config(_AGAINST)
        before, after = (plan_record(make_plan(side, topology)) for side in (against, config))
        changed = differences(against, config)
        lines = [f"{name}: {old!r} -> {new!r}" for name, (old, new) in changed.items()]
    record = {"changed": lines, "before": before, "after": after}
    return EXIT_DONE, record, change_tables(before, after, lines)


COMMANDS = {"plan": plan_command, "diff": diff_command}


def main(argv: list[str]) -> None:
    with report_errors():
        command = COMMANDS[argv[1]]
        if command is plan_command:
            command = search_command if _SEARCH.value else command
            command = check_command if _CHECK.value or _WRITE.value else command
        if _TOPOLOGY.value is None:
            raise ConfigError(["give one with --topology=NAME, such as v3-32"], "--topology")
        topology = find_topology(_TOPOLOGY.value)
        _prepare_jax(topology)
        code, record, shown = command(read_config(_CONFIG), topology)
        answer(code, record, shown, as_json=_JSON.value)


def _prepare_jax(topology: Topology) -> None:
    """Before anything asks JAX for a device: no search for a TPU, and several compilers at once."""
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    if topology.grid or not any(map(find_spec, CUDA_PLUGINS)):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


if __name__ == "__main__":
    app.run(main, flags_parser=lambda argv: parse_command(argv, COMMANDS, default="plan"))
