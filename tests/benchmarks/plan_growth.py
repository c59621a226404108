"""How compile time and memory of the 580M step grow with layers, devices and layout.

    python -m tests.benchmarks.plan_growth layers|devices|layouts

Compiles for TPU v3 with libtpu, each plan in a process of its own with an empty cache, and prints a
Markdown table. 16 sequences per device, no dropout.
"""

import json
import os
import subprocess
import sys
import tempfile

NO_DROPOUT = {"model.dropout_attention": 0.0, "model.dropout_residual": 0.0}
LAYERS = (2, 9, 18, 36)
# The model's width does not divide by 1,024: two replicas of 512.
TOPOLOGIES = {"v3-32": {}, "v3-128": {}, "v3-256": {}, "v3-1024": {"mesh.replica": 2}}
LAYOUTS = ("ddp", "zero1", "zero", "fsdp")


def plan(topology: str, **fields: object) -> dict:
    """The record of the 580M config with these fields on this topology."""
    devices = int(topology.split("-")[1])
    fields = {"data.batch_size": 16 * devices, **NO_DROPOUT, **fields}
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    command = [sys.executable, "-m", "gpt_pjit.plan", "--config=configs/580m.py", "--json"]
    with tempfile.TemporaryDirectory() as cache:
        ran = subprocess.run(
            [*command, f"--topology={topology}", *overrides],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"XDG_CACHE_HOME": cache},
        )
    return json.loads(ran.stdout)


def show(label: str, record: dict) -> None:
    memory, cost = record["memory"], record["cost"]
    sent = sum(c["total_bytes"] for c in record["collectives"])
    print(
        f"| {label} | {record['compile_seconds']:.0f} s | {memory['state_bytes'] / 2**30:.3f} GiB "
        f"| {memory['peak_bytes'] / 2**30:.2f} GiB | {sent / 1e9:.2f} GB "
        f"| {cost['mcycles'] if cost else 0:,.0f} |",
        flush=True,
    )


def main() -> None:
    what = sys.argv[1] if len(sys.argv) > 1 else ""
    print("| | compile | state a core | peak a core | sent a core | Mcycles |")
    print("|---|---|---|---|---|---|")
    if what == "layers":
        for layers in LAYERS:
            show(f"{layers} layers", plan("v3-32", **{"model.n_layers": layers}))
    elif what == "devices":
        for topology, fields in TOPOLOGIES.items():
            show(topology, plan(topology, **fields))
    elif what == "layouts":
        for topology in ("v3-32", "v3-256"):
            for layout in LAYOUTS:
                show(f"{topology} {layout}", plan(topology, **{"partition.layout": layout}))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
