"""The same model by three routes: ours, transformers with lm-eval on top, and CTranslate2."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt_pjit.evaluate.scorer import Scorer, rolling_requests
from gpt_pjit.evaluate.tasks import prepare_jobs
from gpt_pjit.trained import load_trained

Logits = Callable[[list[int]], Any]  # of the ids of one row: a torch tensor [T, V]


def ours(workdir: Path, text: Path) -> float:
    """As `gpt_pjit evaluate --tasks=file:TEXT` gives it."""
    (job,) = prepare_jobs([f"file:{text}"], Scorer(load_trained(workdir), rows=16))
    (result,) = job().values()
    bits = result.metrics["bits_per_byte"]
    assert bits is not None
    return bits


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


def ctranslate2_runtime(folder: Path, converted: Path) -> Any:
    """A C++ runtime, with its own converter and cache."""
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(folder)).convert(str(converted))
    return ctranslate2.Generator(str(converted), intra_threads=1)


def ctranslate2_greedy(runtime: Any, folder: Path, ids: Sequence[int], n_new: int) -> list[int]:
    """Greedy ids after a prompt."""
    import transformers

    names = transformers.AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(ids)
    (result,) = runtime.generate_batch(
        [names], max_length=n_new, sampling_topk=1, include_prompt_in_result=False, end_token=[]
    )
    return result.sequences_ids[0]


def of_ctranslate2(folder: Path, converted: Path) -> Logits:
    import torch

    runtime = ctranslate2_runtime(folder, converted)
    return lambda ids: torch.tensor(np.array(runtime.forward_batch([ids])))[0]


def largest_difference_in_lm_eval(folder: Path, workdir: Path, texts: Sequence[str]) -> float:
    """Between the answers of lm-eval's `hf` backend and of ours to each request, in nats."""
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    import gpt_pjit.evaluate.model  # noqa: F401  registers ours

    backends = [
        get_model("hf")(pretrained=str(folder), dtype="float32", device="cpu", max_length=64),
        get_model("gpt_pjit")(checkpoint=str(workdir), dtype="float32", window=64),
    ]
    kinds: dict[str, list[tuple[str, ...]]] = {
        "loglikelihood": [(a, b) for a in ("", *texts) for b in (" yes", "no", " 42\n")],
        "loglikelihood_rolling": [(text * 9,) for text in texts],
    }
    largest = 0.0
    for kind, arguments in kinds.items():
        requests = [Instance(kind, {}, given, i) for i, given in enumerate(arguments)]
        hf, ours = (
            np.array(getattr(backend, kind)(requests), np.float64).reshape(len(requests), -1)
            for backend in backends
        )
        largest = max(largest, float(np.abs(hf - ours).max()))
    return largest
