"""Make, look at and check token datasets.

python -m gpt_pjit.data tokenize 'texts/*.txt' --tokenizer=FILE --out=DIR
python -m gpt_pjit.data --help
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gpt_pjit.commandline import Parser
from gpt_pjit.config import DataConfig
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens import TokenDataset, load_tokenizer, open_data
from gpt_pjit.data.corpus import check_files, find_files, split_documents
from gpt_pjit.data.documents import training_texts
from gpt_pjit.data.prepare import prepare
from gpt_pjit.data.report import describe, show_tokens, summarize
from gpt_pjit.data.tokenize import Effort
from gpt_pjit.data.train_tokenizer import train_bpe, train_unigram

INPUTS = "files of text, .jsonl, .json(l).gz, .json(l).zst, .parquet; globs; or hf:NAME[:CONFIG]"


def define(parser: Parser) -> None:
    commands = parser.add_subparsers(dest="command", required=True)
    _add_tokenize(commands)
    info = commands.add_parser("info", help="what a set holds")
    info.add_argument("--json", action="store_true", help="its dataset.json")
    info.set_defaults(run=_info)
    verify = commands.add_parser("verify", help="read a whole set and check every checksum")
    verify.set_defaults(run=_verify)
    for command in (info, verify):
        command.add_argument("set", help="a folder, or a gs:// or s3:// URL")
    _add_show(commands)
    _add_train_tokenizer(commands)


def _add_corpus(command: argparse.ArgumentParser) -> None:
    default = DataConfig()
    command.add_argument("inputs", nargs="+", help=INPUTS)
    command.add_argument("--exclude", default="", help="regex of whole paths to leave out")
    command.add_argument("--column", default=default.text_column, help="that holds the text")
    command.add_argument(
        "--validation_fraction",
        type=float,
        default=default.validation_fraction,
        help="of documents, by their hash",
    )
    command.add_argument("--on_error", choices=("stop", "skip"), default="stop")


def _add_tokenize(commands: Any) -> None:
    command = commands.add_parser("tokenize", help="make a set; run again, it goes on")
    _add_corpus(command)
    command.add_argument("--tokenizer", required=True, help="bytes, FILE.json or FILE.model")
    command.add_argument("--out", type=Path, required=True, help="folder of the set")
    command.add_argument("--workers", type=int, default=0, help="processes; 0 for all cores")
    command.add_argument(
        "--engine", choices=("fastest", "tokenizers"), default="fastest", help="for FILE.json"
    )
    command.set_defaults(run=_tokenize)


def _corpus(flags: argparse.Namespace) -> DataConfig:
    config = DataConfig(
        text=" ".join(flags.inputs),
        text_exclude=flags.exclude,
        text_column=flags.column,
        validation_fraction=flags.validation_fraction,
    )
    if not 0 <= config.validation_fraction < 1:
        raise ConfigError([f"--validation_fraction={config.validation_fraction}: not in [0, 1)"])
    return config


def _tokenize(flags: argparse.Namespace) -> None:
    if flags.workers < 0:
        raise ConfigError([f"--workers={flags.workers}: give a number, or 0 for all cores"])
    config = replace(_corpus(flags), tokenizer=flags.tokenizer)
    effort = Effort(flags.workers, flags.on_error == "skip", flags.engine == "fastest")
    counts = prepare(config, flags.out, effort)
    print(summarize(counts) if counts else f"{flags.out} is there already, of the same input")
    print(describe(TokenDataset.open(flags.out)))


def _info(flags: argparse.Namespace) -> None:
    dataset = TokenDataset.open(flags.set)
    print(dataset.info.to_json().decode() if flags.json else describe(dataset))


def _verify(flags: argparse.Namespace) -> None:
    dataset = TokenDataset.open(flags.set)
    dataset.verify()
    print(f"{flags.set}: every checksum and hash is right")


def _add_show(commands: Any) -> None:
    command = commands.add_parser(
        "show", help="tokens as text: of a set, or of a run's example by --config, --step and --row"
    )
    command.add_config()
    command.add_argument("set", nargs="?", help="a folder, or a gs:// or s3:// URL")
    command.add_argument("--split", default="train")
    command.add_argument("--start", type=int, default=0, help="first token")
    command.add_argument("--tokens", type=int, default=200, help="how many")
    command.add_argument("--workdir", type=Path, help="of the run; default runs/<config name>")
    command.add_argument("--step", type=int, help="counted from 0")
    command.add_argument("--row", type=int, default=0, help="of the batch")
    command.set_defaults(run=_show)


def _show(flags: argparse.Namespace) -> None:
    if flags.config.path:
        print(_example(flags))
        return
    if not flags.set:
        raise ConfigError(["give a set, or --config=FILE --step=N --row=N"], "show")
    dataset = TokenDataset.open(flags.set)
    split = dataset.splits.get(flags.split)
    if not split or not 0 <= flags.start < split.tokens:
        sizes = ", ".join(f"{name} of {s.tokens:,} tokens" for name, s in dataset.splits.items())
        raise ConfigError([f"--split={flags.split} --start={flags.start}: it holds {sizes}"])
    print(show_tokens(dataset, split, flags.start, flags.tokens))


def _example(flags: argparse.Namespace) -> str:
    config = flags.config.read()
    rows = config.data.batch_size
    if flags.step is None or flags.step < 0 or not 0 <= flags.row < rows:
        raise ConfigError([f"give --step=N from 0 on, and --row=N below the batch size, {rows}"])
    workdir = flags.workdir or Path("runs") / flags.config.stem
    data = open_data(config.data, workdir / "data", config.model.vocab_size)
    example, length = flags.step * rows + flags.row, config.data.sequence_length
    for dataset, (split, mine, starts) in zip(
        data.datasets, data.windows(np.array([example]), config.seed, length), strict=True
    ):
        if mine.size:
            text = show_tokens(dataset, split, int(starts[0]), length + 1)
    return f"example {example:,}, row {flags.row} of step {flags.step}\n{text}"


def _add_train_tokenizer(commands: Any) -> None:
    command = commands.add_parser(
        "train_tokenizer", help="FILE.json: byte-level BPE; FILE.model: sentencepiece unigram"
    )
    _add_corpus(command)
    command.add_argument("--vocab_size", type=int, required=True)
    command.add_argument("--out", type=Path, required=True, help="FILE.json or FILE.model")
    command.set_defaults(run=_train_tokenizer)


def _train_tokenizer(flags: argparse.Namespace) -> None:
    train = {".json": train_bpe, ".model": train_unigram}.get(flags.out.suffix)
    if train is None:
        raise ConfigError([f"--out={flags.out}: expected FILE.json or FILE.model"])
    if flags.vocab_size < 300:
        problem = f"--vocab_size={flags.vocab_size}: 256 bytes and some words need at least 300"
        raise ConfigError([problem], "train_tokenizer")
    config = _corpus(flags)
    files, problems = check_files(find_files(config), {})
    if problems and flags.on_error == "stop":
        raise ConfigError(problems, "inputs")
    parts = split_documents(files, config.validation_fraction)
    texts = training_texts(parts, config.text_column, config.validation_fraction)
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        train(texts, flags.vocab_size, flags.out)
    except RuntimeError as error:  # sentencepiece's, for a vocabulary too large for the text
        reason = str(error).rpartition("] ")[2]
        raise ConfigError(
            [f"--vocab_size={flags.vocab_size}: {reason}"], "train_tokenizer"
        ) from None
    size = load_tokenizer(str(flags.out)).vocab_size
    print(f"{flags.out}: {size:,} ids, from the documents of the training split")
