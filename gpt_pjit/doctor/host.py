"""Checks of one host: its TPU's lock, devices, disk, and data."""

import fcntl
import itertools
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from jax._src import hardware_utils  # what is plugged in, whether or not JAX can use it

from gpt_pjit.config import Config
from gpt_pjit.core.files import file_errors, is_remote
from gpt_pjit.core.model import param_shapes
from gpt_pjit.core.tokens import open_data, train_batches
from gpt_pjit.core.training import make_optimizer
from gpt_pjit.data import Corpus, find_files
from gpt_pjit.doctor.findings import CheckFailedError
from gpt_pjit.pages import human_bytes

TPU_LOCK = Path("/tmp/libtpu_lockfile")  # noqa: S108 (libtpu's choice)
SECONDS_OF_READING = 3.0
LEAST_FREE = 2**30  # bytes, where no config says how large its checkpoints are
BLOCK = 2**20

Item = TypeVar("Item")


def tpu_lock() -> str:
    """Before JAX starts: closing the file would release the lock that this process then holds."""
    try:
        with TPU_LOCK.open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return "none"
    except BlockingIOError:
        found = f"another process holds {TPU_LOCK}, so JAX cannot use the TPU"
        raise CheckFailedError(found, f"find it with sudo lsof {TPU_LOCK}, and end it") from None
    except OSError:
        found = f"{TPU_LOCK} was left by another user, so libtpu cannot open it"
        raise CheckFailedError(found, f"sudo rm {TPU_LOCK}") from None
    return "free"


def devices() -> str:
    kind, platform = jax.devices()[0].device_kind, jax.default_backend()
    chips, _ = hardware_utils.num_available_tpu_chips_and_device_id()
    for name, extra, plugged_in in (
        ("a TPU", "tpu", chips > 0),
        ("an NVIDIA GPU", "cuda", hardware_utils.has_visible_nvidia_gpu()),
    ):
        if plugged_in and platform == "cpu" and not os.environ.get("JAX_PLATFORMS"):
            found = f"this host has {name}, but JAX uses {jax.device_count()} CPU devices"
            raise CheckFailedError(found, f"pip install 'gpt_pjit[{extra}]'")
    return f"{jax.local_device_count()} {kind}"


def disk(config: Config | None, workdir: Path) -> str:
    """Whether the checkpoints that are kept, and the one being written, have room."""
    if is_remote(workdir):
        return "a bucket, which has no limit"
    place = next(folder for folder in (workdir, *workdir.absolute().parents) if folder.exists())
    free, needed = shutil.disk_usage(place).free, LEAST_FREE
    if config:
        params = param_shapes(config.model, config.data.sequence_length)
        state = params, jax.eval_shape(make_optimizer(config, params).init, params)
        held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        needed = held * (config.checkpoint.keep + 1)
    found = f"{human_bytes(free)} free at {place}, {human_bytes(needed)} needed"
    if free < needed:
        remedy = "make room, choose another --workdir, or lower checkpoint.keep"
        raise CheckFailedError(found, remedy)
    return found


def data(config: Config, workdir: Path) -> str:
    """Reads what this host would read, for a few seconds."""
    folder = workdir / "data"
    if config.data.text and not folder.exists():
        return _texts(config) if jax.process_index() == 0 else "process 0 tokenises the text"
    share = max(1, config.data.batch_size // jax.process_count())
    start = time.perf_counter()
    opened = open_data(config.data, folder, config.model.vocab_size)
    batches = train_batches(opened, config, np.arange(share))
    tokens = sum(batch.tokens.size for batch in _for_a_while(batches))
    batches.close()
    return f"{tokens / (time.perf_counter() - start):,.0f} tokens/s"


def _texts(config: Config) -> str:
    files = [file.path for file in find_files(Corpus.of_config(config.data))]
    start, size = time.perf_counter(), 0
    for path in _for_a_while(files):
        with file_errors(f"{path} cannot be read", "data.text"), open(path, "rb") as file:
            size += sum(map(len, _for_a_while(iter(lambda: file.read(BLOCK), b""))))
    rate = size / 1e6 / (time.perf_counter() - start)
    return f"{len(files):,} files of text, {rate:,.0f} MB/s"


def _for_a_while(items: Iterable[Item]) -> Iterator[Item]:
    end = time.perf_counter() + SECONDS_OF_READING
    return itertools.takewhile(lambda _: time.perf_counter() < end, items)
