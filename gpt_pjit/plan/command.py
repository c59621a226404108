"""What a run takes on hardware that is not here, read from its compiled training step.

gpt_pjit plan --config=FILE --topology=v3-32 [--html=FILE] [--dollars_per_chip_hour=2]
gpt_pjit plan --config=FILE --topology=v3-32 --search [--microbatches=2,4 --remat=full]
gpt_pjit plan --config=FILE --topology=v3-32 --check [--write]
gpt_pjit plan diff --config=FILE --topology=v3-32 --against.partition.layout=zero1
gpt_pjit plan pod --topology=v5e-16 --out=FILE

All take overrides (--config.optim.microbatches=2) and --json. No TPU is needed. `diff` says what
changes from --against to --config; --against is the file of --config, unless it names another.
`--check` compares with the record in plans/ beside the config. `pod` writes the order of a pod's
devices, for launch/local.sh, and prints how many hosts there are and how many devices each has.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import jax
from jax._src import hardware_utils  # a GPU that is there, whether or not JAX can use it

from gpt_pjit.commandline import Answer, Parser, comma_separated, local_path, positive, write_page
from gpt_pjit.config import Config, differences, replaced
from gpt_pjit.core.console import Progress
from gpt_pjit.core.cores import usable_cores
from gpt_pjit.core.errors import (
    EXIT_BROKEN,
    EXIT_CONFIG,
    EXIT_DONE,
    EXIT_INTERRUPTED,
    ConfigError,
    Problem,
)
from gpt_pjit.core.files import write_whole
from gpt_pjit.core.validation import validate
from gpt_pjit.pages import (
    Note,
    Record,
    change_notes,
    compare,
    page,
    read_record,
    terminal,
    write_record,
)
from gpt_pjit.plan.compile import Topology, find_topology
from gpt_pjit.plan.cost import fits, memory_of, overrides
from gpt_pjit.plan.gpus import has_compiler
from gpt_pjit.plan.plan import TOLERANCE, essence, is_good, make_plan
from gpt_pjit.plan.pod import pod_record
from gpt_pjit.plan.views import difference_blocks, plan_blocks, search_blocks, seconds

Candidate = tuple[list[str], Record]  # overrides, and the memory estimated before a compile


def run(flags: argparse.Namespace) -> Answer:
    if flags.topology is None:
        raise ConfigError(["give one with --topology=NAME, such as v3-32"], "--topology")
    topology = find_topology(flags.topology)
    # Before JAX looks for devices: no search for a TPU, and several compilers at once.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    wants_gpu = topology.grid is None and has_compiler()
    if (
        not (wants_gpu and hardware_utils.has_visible_nvidia_gpu())
        and "JAX_PLATFORMS" not in os.environ
    ):
        jax.config.update("jax_platforms", "cpu")
    if flags.action == "pod":
        return pod(flags, topology)
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
    changes = compare(essence(read_record(path, tuple(now))), essence(now), TOLERANCE)
    record = {"record": str(path), "changes": changes, "accept": accept}
    if not changes:
        return Answer(EXIT_DONE, record, [f"as recorded in {path}"])
    closing = Note(f"not as recorded in {path}; to accept it:\n    {accept}")
    return Answer(EXIT_BROKEN, record, terminal([*change_notes(changes), closing]))


def diff(flags: argparse.Namespace, config: Config, topology: Topology) -> Answer:
    against = dataclasses.replace(flags.against, path=flags.against.path or flags.config.path)
    before_config = against.read()
    before, after = (make_plan(side, topology) for side in (before_config, config))
    fields = differences(before_config, config)
    changes = compare(essence(before), essence(after))
    record = {"config": fields, "before": before, "after": after, "changes": changes}
    notes = [Note(f"{name}: {old!r} -> {new!r}") for name, (old, new) in fields.items()]
    return Answer(EXIT_DONE, record, terminal([*notes, *difference_blocks(before, after)]))


def pod(flags: argparse.Namespace, topology: Topology) -> Answer:
    if flags.out is None:
        raise ConfigError(["give the file to write with --out=FILE"], "--out")
    record = pod_record(topology)
    write_whole(flags.out, json.dumps(record))
    return Answer(EXIT_DONE, record, [f"{record['hosts']} {record['devices_a_host']}"])


def search_settings(flags: argparse.Namespace, config: Config, topology: Topology) -> Answer:
    rows = config.data.batch_size * config.mesh.tensor // topology.devices or 1
    divisors = [n for n in range(1, rows + 1) if rows % n == 0]
    wanted = {
        "optim.microbatches": flags.microbatches or divisors,
        "model.remat": flags.remat,
        "partition.layout": flags.layouts or [config.partition.layout],
        "mesh.tensor": flags.tensor or [config.mesh.tensor],
    }
    arguments = [*flags.config.arguments, f"--topology={topology.name}"]
    found, code = search(candidates(config, topology, wanted), arguments)
    if code == EXIT_DONE and not any(one["fits"] for one in found):
        code = EXIT_BROKEN
    return Answer(code, found, terminal(search_blocks(found, topology.name)))


def candidates(
    config: Config, topology: Topology, wanted: Mapping[str, Sequence[Any]]
) -> list[Candidate]:
    """Every valid combination of the `wanted` values of fields.

    Those expected to fit come first, the fullest of them first: what is kept in memory is not
    computed again. Raises ConfigError if no combination is valid.
    """
    found: list[Candidate] = []
    problems: dict[Problem | str, None] = {}
    for values in itertools.product(*wanted.values()):
        fields = dict(zip(wanted, values, strict=True))
        try:
            changed = replaced(config, fields)
            validate(changed)
            found.append((overrides(config, fields), memory_of(changed, topology, None)))
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
    if not found:
        raise ConfigError(list(problems), "the search")
    found.sort(key=lambda c: c[1]["peak_bytes"])
    fitting = [c for c in found if fits(c[1])]
    return [*reversed(fitting), *found[len(fitting) :]]


def search(tried: Sequence[Candidate], arguments: Sequence[str]) -> tuple[list[Record], int]:
    """The outcome of each candidate, the fastest that fits first, and whether Ctrl-C came.

    Each is planned by the command that a user would type; what is compiled stays in the cache, so
    the same search continues where it stopped.
    """
    children: list[subprocess.Popen[str]] = []
    pool = ThreadPoolExecutor(usable_cores())
    runs = [pool.submit(_outcome, *candidate, arguments, children) for candidate in tried]
    found, code = [], EXIT_DONE
    try:
        with Progress("compiling", len(runs)) as progress:
            for run in as_completed(runs):
                found.append(run.result())
                progress.update(len(found))
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in children:
            child.kill()
        pool.shutdown()
    return sorted(found, key=lambda one: (not one["fits"], seconds(one))), code


def _outcome(
    changed: list[str],
    memory: Record,
    arguments: Sequence[str],
    children: list[subprocess.Popen[str]],
) -> Record:
    *trees, _ = memory["groups"].values()
    record = {"overrides": changed, "fits": False, "limit": "", "trees_bytes": sum(trees)}
    if sum(trees) > memory["capacity_bytes"]:
        return record | {"limit": "memory: state, weights and gradients alone", "plan": None}
    # A session of its own: Ctrl-C reaches only this process, which then decides.
    with subprocess.Popen(
        [sys.executable, "-m", "gpt_pjit.plan", *arguments, *changed, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        children.append(child)
        out, errors = child.communicate()
    if child.returncode in (EXIT_DONE, EXIT_BROKEN) and out:
        plan = json.loads(out)
        return record | {"fits": bool(plan["fits"]), "limit": _limit(plan), "plan": plan}
    last = errors.strip().splitlines()[-1:] or [f"ended with {child.returncode}"]
    kind = "refused" if child.returncode == EXIT_CONFIG else "failed"
    return record | {"limit": f"{kind}: {last[0].strip()[:200]}", "plan": None}


def _limit(plan: Record) -> str:
    """What to change first: memory, links, or the scope that takes most of the time."""
    cost = plan["cost"]
    if not cost or not plan["fits"]:
        return "memory: activations"
    if cost["exposed_seconds"] > cost["compute_seconds"]:
        return "links between chips"
    for scope, by in cost["scopes"].items():  # the largest first
        return f"compute: {scope}, {sum(by.values()) / cost['mcycles']:.0%}"
    return "compute"


def _integers(text: str) -> list[int]:
    return list(map(positive, comma_separated(text)))


def define(parser: Parser) -> None:
    parser.set_defaults(run=run, remat=["none", "selective", "full"])
    parser.add_argument("action", nargs="?", choices=("plan", "diff", "pod"), default="plan")
    parser.add_config()
    parser.add_argument("--topology", metavar="NAME", help="accelerators, such as v3-32 or h100-8")
    parser.add_json()
    parser.add_argument("--out", type=local_path, metavar="FILE", help="pod: the file to write")
    parser.add_argument("--html", metavar="FILE", help="write a page with pictures")
    parser.add_argument("--dollars_per_chip_hour", type=float, help="for the cost in dollars")
    parser.add_argument("--check", action="store_true", help="compare with the committed record")
    parser.add_argument("--write", action="store_true", help="with --check: accept the plan")
    parser.add_argument("--search", action="store_true", help="compile other settings, rank them")
    searched = parser.add_argument_group("search: lists of settings, such as 1,2,4")
    for name, kind, help in (
        ("microbatches", _integers, "default all that divide the batch"),
        ("remat", comma_separated, "default none,selective,full"),
        ("layouts", comma_separated, "default that of the config"),
        ("tensor", _integers, "sizes of mesh.tensor; default that of the config"),
    ):
        searched.add_argument(f"--{name}", type=kind, metavar="LIST", help=help)
    parser.add_config("against", help="diff: the side before; default the file of --config")
