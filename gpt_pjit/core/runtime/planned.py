"""What a step should take, by the record that `gpt_pjit plan` left beside the config."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import jax

from gpt_pjit.config import Config
from gpt_pjit.core.chips import chip_of_kind
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.files import read_json


class Planned(NamedTuple):
    """Seconds a step, and the record that says so."""

    seconds: float
    path: Path


def planned_step(
    records: Iterable[Path], config: Config, mesh: Mapping[str, int], n_params: int
) -> Planned | None:
    """By the first of the `records` that was made for these chips, mesh, layout, model and batch.

    A file that is no such record is passed over: a run does not depend on it.
    """
    chip = chip_of_kind(jax.devices()[0].device_kind)
    tokens = config.data.batch_size * config.data.sequence_length
    here = (chip and chip.name, dict(mesh), config.partition.layout, n_params, tokens)
    for path in records:
        with suppress(ConfigError, KeyError, TypeError, AttributeError):
            record = read_json(path)
            seconds, rate = (record["cost"][n] for n in ("step_seconds", "tokens_per_second"))
            name = record["topology"].rpartition("-")[0]
            there = (name, *(record[n] for n in ("mesh", "layout", "parameters")))
            if (*there, round(seconds * rate)) == here:
                return Planned(seconds, path)
    return None
