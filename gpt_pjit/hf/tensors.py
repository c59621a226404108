"""Files of tensors in the safetensors format, written and read one tensor at a time.

The format (github.com/huggingface/safetensors): eight bytes with the length of a JSON header, the
header with dtype, shape and place of each tensor, the bytes. The library wants all tensors of a
file in memory to write it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from gpt_pjit.core.errors import ConfigError

DTYPES = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16}
CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
ALIGNMENT = 8
REMEDY = (
    "only .safetensors are read: a .bin is a Python pickle, which can run code; make them with "
    "transformers: AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)"
)


@dataclass(frozen=True)
class Stored:
    """A tensor in a file; `read` copies it into memory."""

    file: Path
    code: str
    shape: tuple[int, ...]
    offset: int

    def read(self) -> np.ndarray:
        count = int(np.prod(self.shape))
        flat = np.fromfile(self.file, DTYPES[self.code], count, offset=self.offset)
        return flat.reshape(self.shape)


def write_tensors(
    folder: Path,
    shapes: dict[str, tuple[int, ...]],
    tensors: Iterable[np.ndarray],
    dtype: str,
    shard_bytes: int = SHARD_BYTES,
) -> list[Path]:
    """Writes `tensors`, which come in the order of `shapes`, as files of about `shard_bytes`.

    A single file is model.safetensors; several have an index beside them.
    """
    numpy_dtype = np.dtype(DTYPES["BF16"] if dtype == "bfloat16" else dtype)
    shards = list(_shards(shapes, numpy_dtype.itemsize, shard_bytes))
    count, names = len(shards), {}
    arriving, files = iter(tensors), []
    for number, shard in enumerate(shards, 1):
        suffix = f"-{number:05d}-of-{count:05d}" if count > 1 else ""
        files.append(folder / f"model{suffix}.safetensors")
        names.update(dict.fromkeys(shard, files[-1].name))
        _write_file(files[-1], {name: shapes[name] for name in shard}, arriving, numpy_dtype)
    assert next(arriving, None) is None, "more tensors than shapes"
    if count > 1:
        elements = sum(int(np.prod(shape)) for shape in shapes.values())
        index = {"metadata": {"total_size": elements * numpy_dtype.itemsize}, "weight_map": names}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return files


def _shards(
    shapes: dict[str, tuple[int, ...]], itemsize: int, shard_bytes: int
) -> Iterator[list[str]]:
    shard: list[str] = []
    size = 0
    for name, shape in shapes.items():
        tensor_bytes = int(np.prod(shape)) * itemsize
        if shard and size + tensor_bytes > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += tensor_bytes
    yield shard


def _write_file(
    path: Path, shapes: dict[str, tuple[int, ...]], tensors: Iterator[np.ndarray], dtype: np.dtype
) -> None:
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + int(np.prod(shape)) * dtype.itemsize
        places = [start, end]
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": places}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            array = np.ascontiguousarray(next(tensors), dtype)
            assert array.shape == shape, f"{name}: {array.shape}, expected {shape}"
            file.write(array.view(np.uint8).data)
            del array  # before the next is made


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of the .safetensors files in `folder`; only their headers are read.

    Raises ConfigError if there is none, or a file is damaged or missing.
    """
    if (folder / INDEX).exists():
        files = [folder / name for name in _indexed(folder / INDEX)]
    else:
        files = [folder / "model.safetensors"]
    if missing := [file.name for file in files if not file.exists()]:
        raise ConfigError([f"{folder} has no {', '.join(missing)}; {REMEDY}"], "import")
    return {name: tensor for file in files for name, tensor in _read_header(file)}


def _indexed(path: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(path.read_text())["weight_map"].values()))
        return [Path(name).name for name in names]  # beside the index, and nowhere else
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _damaged(path) from None


def _damaged(path: Path) -> ConfigError:
    return ConfigError([f"{path} is damaged or cut short; fetch it again"], "import")


def _read_header(path: Path) -> Iterator[tuple[str, Stored]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length < size else b""
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        places = [
            (name, entry["dtype"], tuple(entry["shape"]), entry["data_offsets"])
            for name, entry in header.items()
        ]
        end = 8 + length + max((end for *_, (_, end) in places), default=0)
        whole = size == end and all(_fits(*place) for _, *place in places)
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise _damaged(path)
    for name, code, shape, (start, _) in places:
        yield name, Stored(path, code, shape, 8 + length + start)


def _fits(code: str, shape: tuple[int, ...], offsets: tuple[int, int]) -> bool:
    """Whether a tensor fills its place; which dtypes can be read is said of all at once, later."""
    start, end = offsets
    if code not in DTYPES:
        return 0 <= start <= end
    return start >= 0 and end - start == math.prod(shape) * np.dtype(DTYPES[code]).itemsize
