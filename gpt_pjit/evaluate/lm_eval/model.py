"""The model as lm-eval knows models, and lm-eval's command line with it registered.

python -m gpt_pjit.evaluate.lm_eval --model gpt_pjit --model_args checkpoint=DIR --tasks piqa

All flags are lm-eval's. Importing this module registers `gpt_pjit` with lm-eval, which then
accepts it in a program too: `lm_eval.simple_evaluate(model="gpt_pjit", ...)`. Several processes are
joined as for training; JAX_NUM_CPU_DEVICES sets the number of devices on a CPU.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from gpt_pjit.errors import EXIT_CONFIG, ConfigError
from gpt_pjit.evaluate.batches import Request
from gpt_pjit.evaluate.progress import counting
from gpt_pjit.evaluate.requests import fitted, rolling_requests
from gpt_pjit.evaluate.scorer import Scorer
from gpt_pjit.generate import Continuation, Sampling, stream
from gpt_pjit.trained import load_trained, start_devices

MAX_NEW_TOKENS = 256  # lm-eval's default, for tasks that do not say


@register_model("gpt_pjit")
class GptPjitLM(TemplateLM):
    """Arguments, by `--model_args`: `checkpoint` (as for `python -m gpt_pjit.evaluate`), `window`
    (longest input in tokens; as trained), `tensor` (devices that split the model), `dtype`.

    `batch_size` is the number of full windows at once on each device. The devices of all processes
    share each batch, so that lm-eval sees one rank on every process.
    """

    def __init__(
        self,
        checkpoint: str,
        window: int | None = None,
        tensor: int = 1,
        dtype: str = "",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
    ):
        super().__init__()
        self.trained = load_trained(checkpoint, tensor=tensor, dtype=dtype)
        # "auto" is for models that find out by failing; here any number fits that does for one.
        rows = 1 if batch_size == "auto" else int(batch_size)
        self.scorer = Scorer(self.trained, window=window, rows=rows)
        # lm-eval writes results and tables where LOCAL_RANK is 0.
        os.environ["LOCAL_RANK"] = str(jax.process_index())

    @property
    def eot_token_id(self) -> int:
        return self.trained.tokenizer.eot_id

    @property
    def max_length(self) -> int:
        return self.scorer.window

    @property
    def tokenizer_name(self) -> str:
        return self.trained.tokenizer.sha256

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        return [int(i) for i in self.trained.tokenizer.encode(string)]

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        window = self.scorer.window
        wanted = [
            fitted(context + continuation, len(continuation), window, pair[1])
            for pair, context, continuation in requests
        ]
        answers = []
        for (pair, _, _), result in zip(requests, self.scorer.score(wanted), strict=True):
            answer = (result.log_likelihood, result.is_greedy)
            self.cache_hook.add_partial("loglikelihood", pair, answer)
            answers.append(answer)
        return answers

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Windows without overlap, each text after end-of-text: lm-eval's own, as in HFLM."""
        window, eot = self.scorer.window, self.eot_token_id
        wanted: list[Request] = []
        ends = []
        for request in requests:
            tokens = self.tok_encode(request.args[0])
            wanted.extend(rolling_requests(tokens, eot, window, window))
            ends.append(len(wanted))
        results = self.scorer.score(wanted)
        answers = []
        for request, start, end in zip(requests, [0, *ends], ends, strict=False):
            answer = sum((result.log_likelihood for result in results[start:end]), 0.0)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, answer)
            answers.append(answer)
        return answers

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Requests of equal options together; a prompt leaves room for what is to follow it."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        answers = [""] * len(requests)
        with counting("generating", len(requests)) as advance:
            for written, numbers in groups.items():
                texts = self._generate([requests[n].args[0] for n in numbers], json.loads(written))
                for number, text in zip(numbers, texts, strict=True):
                    answers[number] = text
                    self.cache_hook.add_partial("generate_until", requests[number].args, text)
                advance(len(numbers))
        return answers

    def _generate(self, prompts: Sequence[str], options: dict[str, Any]) -> list[str]:
        until = options.get("until") or []
        n_tokens = int(options.get("max_gen_toks", MAX_NEW_TOKENS))
        sampled = options.get("do_sample") or options.get("temperature")
        temperature = float(options.get("temperature", 1.0)) if sampled else 0.0
        room = max(self.max_length - n_tokens, 1)
        rows: list[Continuation] = []
        for rows in stream(  # noqa: B007  # the last is what counts
            self.trained,
            [(self.tok_encode(prompt) or [self.eot_token_id])[-room:] for prompt in prompts],
            n_tokens,
            Sampling(temperature),
            [until] if isinstance(until, str) else list(until),
        ):
            pass
        return [row.text for row in rows]


def main() -> None:
    from lm_eval.__main__ import cli_evaluate

    start_devices()
    try:
        cli_evaluate()
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_CONFIG)


if __name__ == "__main__":
    main()
