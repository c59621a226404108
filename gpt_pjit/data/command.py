"""Make, look at and check token datasets.

gpt_pjit data tokenize texts/*.txt --tokenizer=FILE --out=DIR
gpt_pjit data tokenize texts/*.txt --tokenizer=FILE --out=DIR --part=3/16  # and the 15 others
gpt_pjit data join DIR
gpt_pjit data --help
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np

from gpt_pjit.commandline import Parser, any_path, local_path
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.core.tokens import TokenDataset, load_tokenizer
from gpt_pjit.data.corpus import BadInput, Corpus, check_files
from gpt_pjit.data.join import join
from gpt_pjit.data.prepare import prepare, train_bpe, train_unigram, training_texts
from gpt_pjit.data.readers import divide
from gpt_pjit.data.share import WHOLE, Share, parts_folder
from gpt_pjit.data.show import BatchTexts, excerpt
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
    tokenize = parser.add_command("tokenize", _tokenize, "make a set; run again to resume")
    text = "put the parts that `tokenize --part` made together into their set"
    joining = parser.add_command("join", _join, text)
    info = parser.add_command("info", _info, "show what a set holds")
    verify = parser.add_command("verify", _verify, "read a whole set and check every checksum")
    text = "show tokens as text: of a set, or of a run's example (--config, --step, --row)"
    show = parser.add_command("show", _show, text)
    text = "make FILE.json, a byte-level BPE, or FILE.model, a sentencepiece unigram"
    train = parser.add_command("train_tokenizer", _train_tokenizer, text)

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
    add("--vocab_size", type=int, required=True, help="ids, bytes and end-of-text included")
    add("--out", type=local_path, required=True, help="FILE.json or FILE.model")
    for command, count in ((info, None), (verify, None), (show, "?")):
        command.add_argument("set", nargs=count, help="a folder, or a gs:// or s3:// URL")
    info.add_argument("--json", action="store_true", help="its dataset.json")
    show.add_config()
    add = show.add_argument
    add("--split", default="train", help="train or validation")
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
    found = re.fullmatch(r"0*([1-9]\d*)/([1-9]\d*)", text)
    if not found or int(found[1]) > int(found[2]):
        problem = f"{text!r} is not K/N, such as 3/16, with K from 1 to N"
        raise argparse.ArgumentTypeError(problem)
    return Share(int(found[1]), int(found[2]))


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
        raise ConfigError(["give a set, or --config=FILE --step=N --row=N"], "flags")
    dataset = TokenDataset.open(flags.set)
    split = dataset.splits.get(flags.split)
    if not split or not 0 <= flags.start < split.tokens:
        sizes = ", ".join(f"{s.tokens:,} tokens in {name}" for name, s in dataset.splits.items())
        raise ConfigError(
            [f"--split={flags.split} --start={flags.start}: there are {sizes}"], "flags"
        )
    print(excerpt(dataset, split, flags.start, flags.tokens).text)


def _example(flags: argparse.Namespace) -> str:
    config, step, row = flags.config.read(), flags.step, flags.row
    if step is None or step < 0 or row < 0:
        raise ConfigError(["give --step=N from 0 on, and --row=N below the batch size"], "flags")
    batch = BatchTexts(config, flags.workdir or Path("runs") / flags.config.stem, step)
    if row >= batch.rows:
        raise ConfigError([f"--row={row}: step {step} has {batch.rows} rows"], "flags")
    example = batch.example(row)
    return f"example {example.number:,} of its set, row {row} of step {step}\n{example.text}"


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
