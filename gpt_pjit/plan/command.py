"""What a run will take on hardware that is not here: compiles its training step and reads it.

gpt_pjit plan --config=FILE --topology=v3-32 [--html=FILE] [--dollars_per_chip_hour=2]
gpt_pjit plan --config=FILE --topology=v3-32 --search [--microbatches=2,4 --remat=full]
gpt_pjit plan --config=FILE --topology=v3-32 --check [--write]
gpt_pjit plan diff --config=FILE --topology=v3-32 --against.partition.layout=zero1

All take overrides (--config.optim.microbatches=2) and --json. No TPU is needed. `diff` says what
changes from --against to --config; --against is the file of --config, unless it names another.
`--check` compares with the record in plans/ beside the config.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
from importlib.util import find_spec
from pathlib import Path

import jax

from gpt_pjit.commandline import Answer, Parser, comma_separated, write_page
from gpt_pjit.config import Config, differences
from gpt_pjit.core.errors import EXIT_BROKEN, EXIT_DONE, ConfigError
from gpt_pjit.pages import (
    Note,
    changes_table,
    compare,
    page,
    read_record,
    terminal,
    write_record,
)
from gpt_pjit.plan.plan import TOLERANCE, essence, is_good, make_plan
from gpt_pjit.plan.search import candidates, search, search_blocks
from gpt_pjit.plan.topology import Topology, find_topology
from gpt_pjit.plan.views import difference_blocks, plan_blocks

CUDA_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


def run(flags: argparse.Namespace) -> Answer:
    if flags.topology is None:
        raise ConfigError(["give one with --topology=NAME, such as v3-32"], "--topology")
    topology = find_topology(flags.topology)
    _prepare_jax(topology)
    config = flags.config.read()
    if flags.action == "diff":
        return diff(flags, config, topology)
    if flags.check or flags.write:
        return check(flags, config, topology)
    return (search_settings if flags.search else plan)(flags, config, topology)


def plan(flags: argparse.Namespace, config: Config, topology: Topology) -> Answer:
    record = make_plan(config, topology, flags.dollars_per_chip_hour)
    code = EXIT_DONE if is_good(record) else EXIT_BROKEN
    if flags.html:
        title = f"{flags.config.path} on {topology.name}"
        write_page(flags.html, page(title, plan_blocks(record, pictures=True)))
        return Answer(code, record, [f"wrote {flags.html}"])
    return Answer(code, record, terminal(plan_blocks(record)))


def check(flags: argparse.Namespace, config: Config, topology: Topology) -> Answer:
    path = Path(flags.config.path).parent / "plans" / f"{flags.config.stem}.{topology.name}.json"
    flagged = ["--topology", topology.name, "--check", "--write"]
    accept = shlex.join(["gpt_pjit", "plan", *flags.config.arguments, *flagged])
    if not path.exists() and not flags.write:
        raise ConfigError([f"no such file: {path}; write it: {accept}"], "plan")
    now = make_plan(config, topology)
    if flags.write:
        write_record(path, now)
        return Answer(EXIT_DONE, {"record": str(path)}, [f"wrote {path}"])
    kept = read_record(path, tuple(now))
    changes = compare(essence(kept), essence(now), TOLERANCE)
    record = {"record": str(path), "changes": changes, "accept": accept}
    if not changes:
        return Answer(EXIT_DONE, record, [f"as recorded in {path}"])
    closing = Note(f"not as recorded in {path}; to accept it:\n    {accept}")
    return Answer(EXIT_BROKEN, record, terminal([changes_table(changes), closing]))


def search_settings(flags: argparse.Namespace, config: Config, topology: Topology) -> Answer:
    wanted = {
        "optim.microbatches": flags.microbatches,
        "model.remat": flags.remat,
        "partition.layout": flags.layouts,
        "mesh.tensor": flags.tensor,
    }
    arguments = [*flags.config.arguments, f"--topology={topology.name}"]
    found, code = search(candidates(config, topology, wanted), topology, arguments)
    if code == EXIT_DONE and not any(one["fits"] for one in found):
        code = EXIT_BROKEN
    return Answer(code, found, terminal(search_blocks(found, topology)))


def diff(flags: argparse.Namespace, config: Config, topology: Topology) -> Answer:
    against = dataclasses.replace(flags.against, path=flags.against.path or flags.config.path)
    before_config = against.read()
    before, after = (make_plan(side, topology) for side in (before_config, config))
    fields = differences(before_config, config)
    changes = compare(essence(before), essence(after))
    record = {"config": fields, "before": before, "after": after, "changes": changes}
    notes = [Note(f"{name}: {old!r} -> {new!r}") for name, (old, new) in fields.items()]
    return Answer(EXIT_DONE, record, terminal([*notes, *difference_blocks(before, after)]))


def define(parser: Parser) -> None:
    parser.set_defaults(run=run)
    parser.add_argument("action", nargs="?", choices=("plan", "diff"), default="plan")
    parser.add_config()
    parser.add_argument("--topology", metavar="NAME", help="accelerators as consoles name them")
    parser.add_json()
    parser.add_argument("--html", metavar="FILE", help="write a page with pictures")
    parser.add_argument("--dollars_per_chip_hour", type=float, help="for the cost in dollars")
    parser.add_argument("--check", action="store_true", help="compare with the committed record")
    parser.add_argument("--write", action="store_true", help="with --check: accept the plan")
    parser.add_argument("--search", action="store_true", help="compile other settings, rank them")
    searched = parser.add_argument_group("search: lists of settings, such as 1,2,4")
    for name, help in (
        ("microbatches", "default all that divide the batch"),
        ("remat", "default none,selective,full"),
        ("layouts", "default that of the config"),
        ("tensor", "sizes of mesh.tensor; default that of the config"),
    ):
        searched.add_argument(f"--{name}", type=comma_separated, metavar="LIST", help=help)
    parser.set_defaults(remat=["none", "selective", "full"])
    parser.add_config("against", help="diff: the side before; default the file of --config")


def _prepare_jax(topology: Topology) -> None:
    """Before JAX looks for devices: no search for a TPU, and several compilers at once."""
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    wants_gpu = topology.grid is None and any(map(find_spec, CUDA_PLUGINS))
    if not wants_gpu and "JAX_PLATFORMS" not in os.environ:
        jax.config.update("jax_platforms", "cpu")
