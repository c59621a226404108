"""LAMBADA, PIQA, HellaSwag and Winogrande, with the prompts and metrics of lm-eval."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.evaluate.batches import Request
from gpt_pjit.evaluate.losses import loss_metrics, worst_tokens
from gpt_pjit.evaluate.requests import choice_request
from gpt_pjit.evaluate.scorer import Scored, Scorer
from gpt_pjit.evaluate.statistics import mean, perplexity
from gpt_pjit.evaluate.texts import Job, Result

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Item:
    """One question: `pairs` of context and continuation to score, of which `gold` is right.

    `lengths` are those of the choices in characters, by which `acc_norm` divides.
    """

    pairs: tuple[tuple[str, str], ...]
    gold: int
    lengths: tuple[int, ...]


def lambada(record: Record) -> Item:
    """The last word after all words before it."""
    words = record["text"].split(" ")
    return Item(((" ".join(words[:-1]), " " + words[-1]),), 0, (len(words[-1]),))


def piqa(record: Record) -> Item:
    context = f"Question: {record['goal']}\nAnswer:"
    return _of_one_context(context, (record["sol1"], record["sol2"]), int(record["label"]))


def hellaswag(record: Record) -> Item:
    context = f"{record['activity_label']}: {record['ctx_a']} {record['ctx_b'].capitalize()}"
    endings = [_plain(ending) for ending in record["endings"]]
    return _of_one_context(_plain(context), endings, int(record["label"]))


def winogrande(record: Record) -> Item:
    """Partial evaluation: the text after the gap, scored after each option in the gap."""
    before, after = record["sentence"].split("_", 1)
    contexts = [before + record[option] for option in ("option1", "option2")]
    pairs = tuple((context, " " + after.strip()) for context in contexts)
    return Item(pairs, int(record["answer"]) - 1, tuple(map(len, contexts)))


ITEMS: dict[str, Callable[[Record], Item]] = {
    "lambada": lambada,
    "piqa": piqa,
    "hellaswag": hellaswag,
    "winogrande": winogrande,
}


def read_items(records: Sequence[Record], task: str, source: str) -> list[Item]:
    """The items of a task of `ITEMS`; ConfigError with the first record, a line, that is none."""
    items = []
    for number, record in enumerate(records, 1):
        try:
            items.append(ITEMS[task](record))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = f"is no item of {task} ({type(error).__name__}: {error})"
            problem = f"{source}, line {number}, {reason}; give the published file"
            raise ConfigError([problem], "data") from None
    if not items:
        raise ConfigError([f"{source} holds no items of {task}; give the published file"], "data")
    return items


def prepare_items(scorer: Scorer, items: Sequence[Item], task: str) -> Job:
    """Accuracies of a task of `ITEMS`; for LAMBADA also the perplexity of the last word."""
    tokenizer = scorer.trained.tokenizer
    whole = [choice_request(tokenizer, *pair) for item in items for pair in item.pairs]
    requests = scorer.fitted(whole, task)
    return lambda: _result(scorer, items, requests, task)


def _result(
    scorer: Scorer, items: Sequence[Item], requests: Sequence[Request], task: str
) -> Result:
    scored = scorer.score(requests, task)
    details: dict[str, Any] = {"items": len(items), "window": scorer.window}
    if task == "lambada":
        nats = np.array([-result.log_likelihood for result in scored])
        average = mean("nats", nats)
        metrics = perplexity("perplexity", float(nats.mean()), average["nats_stderr"])
        metrics |= mean("acc", [result.is_greedy for result in scored])
        item = np.repeat(np.arange(len(scored)), [len(result.nll) for result in scored])
        metrics |= loss_metrics(np.concatenate([result.nll for result in scored]), item)
        worst = worst_tokens(requests, scored, scorer.trained.tokenizer)
        return Result(metrics, details | {"worst_tokens": worst})
    right, right_normalised = accuracies(items, scored)
    return Result(mean("acc", right) | mean("acc_norm", right_normalised), details)


def accuracies(items: Sequence[Item], scored: Sequence[Scored]) -> tuple[list[bool], list[bool]]:
    """Whether the likeliest choice of each item is the right one: as it is, and by length."""
    right, right_normalised = [], []
    results = iter(scored)
    for item in items:
        sums = np.array([next(results).log_likelihood for _ in item.pairs])
        right.append(bool(np.argmax(sums) == item.gold))
        right_normalised.append(bool(np.argmax(sums / np.array(item.lengths, float)) == item.gold))
    return right, right_normalised


def _of_one_context(context: str, choices: Sequence[str], gold: int) -> Item:
    pairs = tuple((context, " " + choice) for choice in choices)
    return Item(pairs, gold, tuple(map(len, choices)))


def _plain(text: str) -> str:
    """HellaSwag's text without the marks of its WikiHow part."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")
