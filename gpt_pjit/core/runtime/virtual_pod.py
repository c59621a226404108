"""CPU devices that stand in for a pod's, to try what depends on hosts and the order of devices.

`GPT_PJIT_VIRTUAL_POD` names a JSON file, written by `gpt_pjit plan pod`: `kind` is the kind of the
devices, and `devices` lists for each its id, host, number on the host, core on the chip, and
coordinates, in JAX's order on the pod. Each device of a process here stands in for the device with
that host and number.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from gpt_pjit.core.errors import ConfigError

VIRTUAL_POD = "GPT_PJIT_VIRTUAL_POD"


@dataclass(frozen=True)
class Place:
    """What JAX orders the devices of a pod by, and the local `device` that stands in for one."""

    id: int
    process_index: int
    core_on_chip: int
    coords: tuple[int, ...]
    device_kind: str
    device: jax.Device
    platform: str = "tpu"
    slice_index: int = 0


def pod_devices() -> Sequence[Any]:
    """`jax.devices()`, or their places in the virtual pod that the environment names."""
    pod = os.environ.get(VIRTUAL_POD)
    if not pod:
        return jax.devices()
    record = json.loads(Path(pod).read_text())
    ours: dict[int, list[jax.Device]] = {}
    for device in sorted(jax.devices(), key=lambda device: device.id):
        ours.setdefault(device.process_index, []).append(device)
    if len(record["devices"]) != jax.device_count():
        problem = f"{pod} describes {len(record['devices'])} devices, not {jax.device_count()}"
        raise ConfigError([problem], VIRTUAL_POD)
    return [
        Place(id, host, core, tuple(coords), record["kind"], ours[host][local])
        for id, host, local, core, coords in record["devices"]
    ]
