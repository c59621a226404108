"""Bits per byte of a text by three routes: ours, transformers and CTranslate2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gpt_pjit.evaluate.command import prepare_jobs
from gpt_pjit.evaluate.scorer import Scorer, rolling_requests
from gpt_pjit.trained import load_trained

Logits = Callable[[list[int]], Any]  # of the ids of one row: a torch tensor [T, V]


def ours(workdir: Path, text: Path) -> float:
    """As `gpt_pjit evaluate --tasks=file:TEXT` gives it."""
    (job,) = prepare_jobs([f"file:{text}"], Scorer(load_trained(workdir), rows=16))
    (result,) = job().values()
    return result.metrics["bits_per_byte"]


def theirs(logits: Logits, folder: Path, text: Path, window: int) -> float:
    """The same windows of the ids that `AutoTokenizer` gives, with another runtime's logits."""
    import torch
    import transformers

    tokenizer, nats = transformers.AutoTokenizer.from_pretrained(folder), 0.0
    ids = tokenizer(text.read_text())["input_ids"]
    for request in rolling_requests(ids, tokenizer.eos_token_id, window, window):
        *inputs, _ = request.tokens
        targets = torch.tensor(request.tokens[1:])
        each = torch.nn.functional.cross_entropy(logits(inputs), targets, reduction="none")
        nats += float(each[-request.scored :].double().sum())
    return nats / np.log(2) / len(text.read_bytes())


def of_transformers(folder: Path) -> Logits:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)

    def logits(ids: list[int]) -> Any:
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0]

    return logits


def of_ctranslate2(folder: Path, converted: Path) -> Logits:
    import ctranslate2
    import torch
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(folder)).convert(str(converted))
    runtime = ctranslate2.Generator(str(converted), intra_threads=1)
    return lambda ids: torch.tensor(np.array(runtime.forward_batch([ids])))[0]
