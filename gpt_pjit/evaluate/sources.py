"""Where evaluation data comes from: files as published, checked by hash, or the Hugging Face hub.

A file is looked for in DATA_DIR/TASK, then in DATA_DIR. Hub revisions are pinned: the data sets of
lm-eval's tasks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_pjit.core.errors import ConfigError


@dataclass(frozen=True)
class Hub:
    repository: str
    config: str | None
    split: str
    revision: str

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}"


@dataclass(frozen=True)
class Source:
    """Files with the hash that each is known by ("sha256:..." or "md5:...", or none is known)."""

    files: dict[str, str | None]
    origin: str
    hub: Hub | None = None


SOURCES = {
    "wikitext2": Source(
        {
            "wiki.test.raw": "sha256:"
            "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08"
        },
        "wikitext-2-raw-v1.zip, as published by Salesforce Research",
        Hub(
            "EleutherAI/wikitext_document_level",
            "wikitext-2-raw-v1",
            "test",
            "647234772b9554e208af6c826f23b99e3cac88c8",
        ),
    ),
    "text8": Source(
        {"text8": "md5:3bea1919949baf155f99411df5fada7e"}, "http://mattmahoney.net/dc/text8.zip"
    ),
    "enwik8": Source(
        {
            "enwik8": "sha256:2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8",
        },
        "http://mattmahoney.net/dc/enwik8.zip",
    ),
    "lambada": Source(
        {
            "lambada_test.jsonl": "sha256:"
            "4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226"
        },
        "https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl",
        Hub(
            "EleutherAI/lambada_openai",
            "default",
            "test",
            "900124bf3b8235c6daf21033af9948b3f07346c4",
        ),
    ),
    "piqa": Source(
        {
            "valid.jsonl": "sha256:"
            "93503cc97c679e459b065c3d13e848282e44b2a25213985bed3e5d458abef72d",
            "valid-labels.lst": "sha256:"
            "b4192dc3a2a0363d9d60ccf79800cbbe2f32ebb17726efdde6970e0b8131bceb",
        },
        "https://yonatanbisk.com/piqa/data/",
        Hub("baber/piqa", None, "validation", "142f6d7367fd9877f0fb3b5734ea6a545f54cdd1"),
    ),
    "hellaswag": Source(
        {
            "hellaswag_val.jsonl": "sha256:"
            "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588"
        },
        "https://github.com/rowanz/hellaswag, folder data",
        Hub("Rowan/hellaswag", None, "validation", "218ec52e09a7e7462a5400043bb9a69a41d06b76"),
    ),
    "winogrande": Source(
        {"dev.jsonl": None},  # no hash is published
        "winogrande_1.1.zip of https://winogrande.allenai.org",
        Hub(
            "allenai/winogrande",
            "winogrande_xl",
            "validation",
            "01e74176c63542e6b0bcb004dcdea22d94fb67b5",
        ),
    ),
}


@dataclass(frozen=True)
class Data:
    """What a task reads: the bytes of its files by name, or rows of the hub; and where from."""

    contents: dict[str, bytes]
    rows: list[dict[str, Any]] | None
    origin: dict[str, Any]


def read_data(task: str, data_dir: Path | None) -> Data:
    """The data of a task of `SOURCES`; ConfigError says where to get it, or what is wrong."""
    source = SOURCES[task]
    if data_dir is not None:
        return _read_files(task, source, data_dir)
    if source.hub is None:
        problem = f"{task} needs a file: {_wanted(source)}; give its folder with --data_dir"
        raise ConfigError([problem], "data")
    return _read_hub(task, source, source.hub)


def read_file(path: Path) -> Data:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError([f"{path} cannot be read: {error.strerror}; check the path"]) from None
    origin = {"file": str(path), "sha256": hashlib.sha256(content).hexdigest(), "checked": False}
    return Data({path.name: content}, None, origin)


def json_lines(content: bytes, name: str) -> list[dict[str, Any]]:
    """A record a line. Raises ConfigError with the first line of the file `name` that is none."""
    records = []
    for number, line in enumerate(content.rstrip().split(b"\n"), 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            problem = f"{name}, line {number}, is no JSON ({error}); get the file again"
            raise ConfigError([problem], "data") from None
    return records


def _read_files(task: str, source: Source, data_dir: Path) -> Data:
    contents, hashes, problems = {}, {}, []
    for name, expected in source.files.items():
        places = (data_dir / task / name, data_dir / name)
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            looked = " and ".join(map(str, places))
            problems.append(f"{task}: no {name} ({looked}); it is in {source.origin}")
            continue
        contents[name] = path.read_bytes()
        hashes[name] = hashlib.sha256(contents[name]).hexdigest()
        kind, _, digest = (expected or "").partition(":")
        found = hashlib.new(kind, contents[name], usedforsecurity=False).hexdigest() if kind else ""
        if found != digest:
            problems.append(
                f"{task}: {path} has {kind} {found}, the published file {digest}; get it again "
                f"from {source.origin}, or score it as file:{path}"
            )
    if problems:
        raise ConfigError(problems, "data")
    checked = all(source.files.values())
    return Data(contents, None, {"files": sorted(contents), "sha256": hashes, "checked": checked})


def _read_hub(task: str, source: Source, hub: Hub) -> Data:
    by_hand = f"or give --data_dir with {_wanted(source)}"
    try:
        import datasets
    except ImportError:
        problem = f"{task}: without --data_dir, data comes from the hub, which needs the package"
        remedy = f"`datasets`: pip install 'gpt_pjit[corpora]', {by_hand}"
        raise ConfigError([f"{problem} {remedy}"], "data") from None
    try:
        rows: Iterable[Any] = datasets.load_dataset(
            hub.repository, hub.config, split=hub.split, revision=hub.revision
        )
        return Data({}, [dict(row) for row in rows], {"hub": str(hub), "checked": True})
    except Exception as error:  # of several libraries, for no network, no such revision, ...
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        problem = f"{task}: {hub} cannot be read: {reason[:200]}; check the network, {by_hand}"
        raise ConfigError([problem], "data") from None


def _wanted(source: Source) -> str:
    return f"{' and '.join(source.files)} of {source.origin}"
