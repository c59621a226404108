"""Make, look at and check token datasets.

gpt_pjit data tokenize texts/*.txt --tokenizer=FILE --out=DIR
gpt_pjit data tokenize texts/*.txt --tokenizer=FILE --out=DIR --part=3/16  # and the 15 others
gpt_pjit data join DIR
gpt_pjit data --help
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from gpt_pjit.commandline import Parser, any_path, local_path
from gpt_pjit.config import Config
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens import (
    TokenDataset,
    TokenSplit,
    Walk,
    first_walk,
    load_tokenizer,
    open_data,
    walks_of,
)
from gpt_pjit.data.corpus import BadInput, Corpus, check_files
from gpt_pjit.data.join import join
from gpt_pjit.data.prepare import prepare, train_bpe, train_unigram, training_texts
from gpt_pjit.data.readers import divide
from gpt_pjit.data.share import WHOLE, Share, parts_folder
from gpt_pjit.data.tokenize import OVERSIZED, Counts, TokenizeOptions
from gpt_pjit.data.writer import writing

INPUTS = "text, JSON lines (both also .gz, .zst) or Parquet files; globs; or hf:NAME[:CONFIG]"
QUANTILES = {"least": 0, "5%": 0.05, "25%": 0.25, "50%": 0.5, "75%": 0.75, "95%": 0.95, "most": 1}
SUMMARY = {  # what tokenising met that the set does not tell
    "documents": "documents",
    "empty": "empty",
    "oversized": f"above {OVERSIZED:,} bytes",
    "changed": "changed by the tokenizer's normaliser",
    "skipped": "skipped",
}
SMALLEST_VOCABULARY = 300  # 256 bytes, end-of-text and some words


def define(parser: Parser) -> None:
    commands = parser.add_subparsers(dest="command", required=True)
    tokenize = commands.add_parser("tokenize", help="make a set; run again to resume")
    tokenize.set_defaults(run=_tokenize)
    text = "put the parts that `tokenize --part` made together into their set"
    joining = commands.add_parser("join", help=text)
    joining.set_defaults(run=_join)
    info = commands.add_parser("info", help="show what a set holds")
    info.set_defaults(run=_info)
    verify = commands.add_parser("verify", help="read a whole set and check every checksum")
    verify.set_defaults(run=_verify)
    text = "show tokens as text: of a set, or of a run's example (--config, --step, --row)"
    show = commands.add_parser("show", help=text)
    show.set_defaults(run=_show)
    text = "make FILE.json, a byte-level BPE, or FILE.model, a sentencepiece unigram"
    train = commands.add_parser("train_tokenizer", help=text)
    train.set_defaults(run=_train_tokenizer)

    for add in (tokenize.add_argument, train.add_argument):
        add("inputs", nargs="+", help=INPUTS)
        add("--exclude", default="", help="regex of whole paths to leave out")
        add("--column", default=Corpus.column, help="the field that holds the text")
        text = "share of documents held out, chosen by hash; 0 for none"
        fraction = Corpus.validation_fraction
        add("--validation_fraction", type=float, default=fraction, help=text)
        text = "skip: leave bad documents out"
        add("--on_error", choices=("stop", "skip"), default="stop", help=text)
    add = tokenize.add_argument
    add("--tokenizer", required=True, help="bytes, FILE.json or FILE.model")
    add("--out", type=local_path, required=True, help="folder of the set")
    add("--workers", type=int, default=0, help="processes; 0 for all cores")
    engines = ("tokenizers", "fastokens")
    add("--engine", choices=engines, default="tokenizers", help="what encodes with FILE.json")
    text = "make part K of N alone, in OUT.parts; when all are made, `data join OUT`"
    add("--part", type=_share, default=WHOLE, metavar="K/N", help=text)
    joining.add_argument("out", type=local_path, metavar="OUT", help="the --out of the parts")
    add = train.add_argument
    add("--vocab_size", type=int, required=True)
    add("--out", type=local_path, required=True, help="FILE.json or FILE.model")
    for command, count in ((info, None), (verify, None), (show, "?")):
        command.add_argument("set", nargs=count, help="a folder, or a gs:// or s3:// URL")
    info.add_argument("--json", action="store_true", help="its dataset.json")
    show.add_config()
    add = show.add_argument
    add("--split", default="train")
    add("--start", type=int, default=0, help="first token")
    add("--tokens", type=int, default=200, help="how many")
    add("--workdir", type=any_path, help="of the run; default runs/<config name>")
    add("--step", type=int, help="counted from 0")
    add("--row", type=int, default=0, help="of the batch")


def _corpus(flags: argparse.Namespace) -> Corpus:
    fraction = flags.validation_fraction
    if not 0 <= fraction < 1:
        raise ConfigError([f"--validation_fraction={fraction} is not in [0, 1)"], "flags")
    return Corpus(tuple(flags.inputs), flags.exclude, flags.column, validation_fraction=fraction)


def _tokenize(flags: argparse.Namespace) -> None:
    if flags.workers < 0:
        raise ConfigError([f"--workers={flags.workers} is negative; 0 is all cores"], "flags")
    share, skip = flags.part, flags.on_error == "skip"
    options = TokenizeOptions(flags.workers, skip, flags.engine, share)
    folder = flags.out if share.is_whole else share.folder(flags.out)
    try:
        counts = prepare(_corpus(flags), flags.tokenizer, folder, options)
    except KeyboardInterrupt:
        print("\nthe same command resumes from where it last saved", file=sys.stderr)
        raise
    _summarise(counts, folder)


def _join(flags: argparse.Namespace) -> None:
    _summarise(join(flags.out), flags.out)
    print(f"{parts_folder(flags.out)} may be deleted")


def _summarise(counts: Counts | None, folder: Path) -> None:
    """What was met in making the set in `folder`; None if it was there already."""
    if counts is None:
        print(f"{folder} already exists, made from the same input")
    else:
        print("\n".join(f"{counts[key]:>12,}  {words}" for key, words in SUMMARY.items()))
    print(_description(TokenDataset.open(folder)))


def _share(text: str) -> Share:
    try:
        return Share.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _info(flags: argparse.Namespace) -> None:
    dataset = TokenDataset.open(flags.set)
    print(dataset.info.to_json().decode() if flags.json else _description(dataset))


def _verify(flags: argparse.Namespace) -> None:
    dataset = TokenDataset.open(flags.set)
    dataset.verify()
    print(f"{flags.set}: every checksum and hash is right")


def _show(flags: argparse.Namespace) -> None:
    if flags.config.path:
        print(_example(flags))
        return
    if not flags.set:
        raise ConfigError(["give a set, or --config=FILE --step=N --row=N"], "show")
    dataset = TokenDataset.open(flags.set)
    split = dataset.splits.get(flags.split)
    if not split or not 0 <= flags.start < split.tokens:
        sizes = ", ".join(f"{s.tokens:,} tokens in {name}" for name, s in dataset.splits.items())
        raise ConfigError([f"--split={flags.split} --start={flags.start}: there are {sizes}"])
    print(_text(dataset, split, flags.start, flags.tokens))


def _example(flags: argparse.Namespace) -> str:
    config = flags.config.read()
    if flags.step is None or flags.step < 0 or flags.row < 0:
        raise ConfigError(["give --step=N from 0 on, and --row=N below the batch size"])
    workdir = flags.workdir or Path("runs") / flags.config.stem
    data = open_data(config.data, workdir / "data", config.model.vocab_size)
    walk = _walk(config, data.fingerprints(), workdir, flags.step)
    if flags.row >= walk.batch_size:
        raise ConfigError([f"--row={flags.row}: step {flags.step} has {walk.batch_size} rows"])
    rows = np.array([flags.row])
    for dataset, (split, mine, number, starts) in zip(
        data.datasets, data.windows(walk, flags.step, rows), strict=True
    ):
        if mine.size:
            text = _text(dataset, split, int(starts[0]), walk.sequence_length + 1)
            where = f"example {number[0]:,} of its set, row {flags.row} of step {flags.step}"
    return f"{where}\n{text}"


def _walk(config: Config, sets: list[str], workdir: Path, step: int) -> Walk:
    """How the run in `workdir` reads at `step`, or would if it began with this config."""
    from gpt_pjit.core.runtime import has_begun, read_run  # imports JAX

    walks = [first_walk(config, sets)]
    if (workdir / "run.json").exists():
        began, record = read_run(workdir)
        walks = walks_of(began, record) if has_begun(record) else walks
    walk = [walk for walk in walks if walk.step <= step][-1]
    if [each.sha256 for each in walk.sets] != sets:
        raise ConfigError([f"step {step} of the run in {workdir} has read other sets"], "show")
    return walk


def _train_tokenizer(flags: argparse.Namespace) -> None:
    size, out = flags.vocab_size, flags.out
    train = {".json": train_bpe, ".model": train_unigram}.get(out.suffix)
    if train is None:
        raise ConfigError([f"--out={out} is neither FILE.json nor FILE.model"], "flags")
    if size < SMALLEST_VOCABULARY:
        raise ConfigError([f"--vocab_size={size} is below {SMALLEST_VOCABULARY}"], "flags")
    corpus, bad = _corpus(flags), BadInput(flags.on_error == "skip")
    texts = training_texts(divide(check_files(corpus, bad), corpus), corpus, bad)
    with writing(out):
        train(texts, size, out)
    found = load_tokenizer(str(out)).vocab_size
    print(f"{out}: {found:,} ids, from the training split; {bad.count:,} documents skipped")


def _description(dataset: TokenDataset) -> str:
    """The sizes of each split, and how long its documents are."""
    info = dataset.info
    lines = [
        f"{dataset.path}: tokenizer {info.tokenizer.name}, {info.vocab_size:,} ids, {info.dtype}",
        f"fingerprint {dataset.fingerprint}",
    ]
    for split in dataset.splits.values():
        per_token = split.source_bytes / max(split.tokens - split.documents, 1)
        lengths = np.diff(split.document_offsets(0, split.documents + 1))
        values = np.quantile(lengths, list(QUANTILES.values())) if lengths.size else ()
        quantiles = ", ".join(f"{n} {v:,.0f}" for n, v in zip(QUANTILES, values, strict=False))
        lines += [
            f"{split.name}:",
            f"  documents        {split.documents:>16,}",
            f"  bytes of text    {split.source_bytes:>16,}",
            f"  tokens           {split.tokens:>16,}",
            f"  bytes a token    {per_token:>16.3f}  (end-of-text not counted)",
            f"  tokens a document  {quantiles or 'none'}",
        ]
    return "\n".join(lines)


def _text(dataset: TokenDataset, split: TokenSplit, start: int, length: int) -> str:
    """The text of `length` tokens from `start` on: each document's part, and where it is."""
    tokenizer = dataset.tokenizer()
    stop = min(start + length, split.tokens)
    ids = split.read(np.array([start]), stop - start)[0]
    lines = [f"tokens {start:,} to {stop:,} of split {split.name!r} of {split.path}"]
    at = start
    while at < stop:
        document = split.document_at(at)
        begin, end = split.document_offsets(document, document + 2).tolist()
        if not begin <= at < end:
            problem = f"the documents of split {split.name!r} do not cover token {at:,}"
            raise ConfigError([problem], f"token dataset {split.path}")
        text = tokenizer.decode(ids[at - start : min(end, stop) - start])
        ends = ", to its end" if end <= stop else ""
        lines.append(f"--- document {document:,}, from its token {at - begin:,}{ends}\n{text}")
        at = end
    return "\n".join(lines)
