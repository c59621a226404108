"""The devices of a pod in the order in which JAX lists them there: a file for a virtual pod."""

from __future__ import annotations

from collections import Counter
from typing import Any

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.plan.compile import Topology, devices_of


def pod_record(topology: Topology) -> dict[str, Any]:
    """What `gpt_pjit.core.runtime.pod_devices` reads; ConfigError where the topology has no pods.

    Devices are [id, host, number on the host, core on the chip, coordinates].
    """
    devices: Any = devices_of(topology)
    if topology.grid is None:
        raise ConfigError([f"{topology.name} is not a TPU: its order is unknown"], "--topology")
    seen: Counter[int] = Counter()
    listed = []
    for device in devices:
        host = device.process_index
        listed.append([device.id, host, seen[host], device.core_on_chip, list(device.coords)])
        seen[host] += 1
    return {
        "topology": topology.name,
        "kind": devices[0].device_kind,
        "hosts": len(seen),
        "devices_a_host": seen[0],
        "devices": listed,
    }
