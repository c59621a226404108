"""The model as lm-eval knows models: log-likelihoods by the scorer, texts by `generate`.

Importing it registers `gpt_pjit` with lm-eval, also for `lm_eval.simple_evaluate(model="gpt_pjit")`
in a program.
"""

import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs

from gpt_pjit.checkpoint_arrays import fingerprint
from gpt_pjit.core.errors import ConfigError
from gpt_pjit.evaluate.orders import load_everywhere, order
from gpt_pjit.evaluate.scorer import Request, Scored, Scorer, fitted, rolling_requests
from gpt_pjit.generate import Continuation, Sampling, stream
from gpt_pjit.trained import Trained

SOURCE = "lm-eval"
_log = logging.getLogger(__name__)


class GenerationOptions(NamedTuple):
    """What a request for text asks for, beside its prompt."""

    max_new_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]


class ScorerLM(TemplateLM):
    """A scorer, asked by lm-eval, which runs on process 0 alone; the devices of all processes share
    each batch.

    What is scored for each item of the tasks that are keys of `losses` is kept there.
    """

    def __init__(self, scorer: Scorer):
        super().__init__()
        self.scorer = scorer
        self.losses: dict[str, list[list[tuple[Request, Scored]]]] = {}
        self.label = SOURCE  # of progress and problems

    @property
    def trained(self) -> Trained:
        return self.scorer.trained

    @property
    def eot_token_id(self) -> int:
        return self.trained.tokenizer.eot_id

    @property
    def max_length(self) -> int:
        return self.scorer.window

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        return [int(i) for i in self.trained.tokenizer.encode(string)]

    def check(self, instances: Sequence[Instance], task: str) -> None:
        """Raises ConfigError where a request cannot fit the window, before any is scored."""
        for instance in instances:
            if instance.request_type == "generate_until":
                generation_options(instance.args[1], self.max_length)
                continue
            # No more tokens than bytes: only long continuations have to be encoded for this.
            fits = 0 < len(instance.args[-1].encode()) < self.max_length
            if instance.request_type == "loglikelihood" and not fits:
                fitted(self._requests([instance]), self.max_length, task)

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        wanted = fitted(self._requests(requests), self.max_length, self.label)
        results = self.scorer.score(wanted, self.label)
        items = [[pair] for pair in zip(wanted, results, strict=True)]
        self._keep(requests, items)
        return [(-float(result.nll.sum()), bool(result.greedy.all())) for result in results]

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
        pairs = list(zip(wanted, self.scorer.score(wanted, self.label), strict=True))
        items = [pairs[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        self._keep(requests, items)
        return [-sum((float(scored.nll.sum()) for _, scored in item), 0.0) for item in items]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Requests with equal options together; a prompt leaves room for what is to follow it."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        options = [generation_options(json.loads(text), self.max_length) for text in groups]
        answers: dict[int, str] = {}
        with self.scorer.progress("generating", len(requests)) as update:
            for wanted, numbers in zip(options, groups.values(), strict=True):
                rows: list[Continuation] = []
                for rows in self._stream([requests[n].args[0] for n in numbers], wanted):
                    update(len(answers) + sum(bool(row.finish_reason) for row in rows))
                answers |= {n: row.text for n, row in zip(numbers, rows, strict=True)}
        return [answers[number] for number in range(len(requests))]

    def _stream(
        self, prompts: Sequence[str], wanted: GenerationOptions
    ) -> Iterator[list[Continuation]]:
        n_tokens = wanted.max_new_tokens
        room = self.max_length - n_tokens
        ids = [self.tok_encode(prompt) for prompt in prompts]
        if cut := sum(len(prompt) > room for prompt in ids):
            _log.warning(
                f"{cut:,} of {len(ids):,} prompts are cut from the left to {room:,} tokens: with "
                f"max_gen_toks={n_tokens} they would not fit the window of {self.max_length:,}"
            )
        ids = [prompt[-room:] for prompt in ids]
        rows = self.scorer.batch_size(max(map(len, ids)) + n_tokens)
        order(
            "stream",
            prompts=ids,
            max_new_tokens=n_tokens,
            sampling=dataclasses.astuple(wanted.sampling),
            stop=wanted.stop,
            batch_size=rows,
        )
        return stream(self.trained, ids, n_tokens, wanted.sampling, wanted.stop, batch_size=rows)

    def _requests(self, instances: Sequence[Instance]) -> list[Request]:
        found = []
        for context, continuation in (instance.args for instance in instances):
            before, after = self._encode_pair(context, continuation)
            if not after:
                problem = f"the continuation {continuation!r} of {context[-40:]!r} has no tokens"
                raise ConfigError([problem], SOURCE)
            found.append(Request((*before, *after), len(after)))
        return found

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As lm-eval does; an empty context, also one of spaces, is end-of-text.

        Where a token spans the end of the context, so that none are left for the continuation,
        lm-eval fails; here the continuation is encoded alone.
        """
        if not context.strip():
            after = self.tok_encode(context + continuation)
            starts = after[:1] == [self.eot_token_id]
            return (after[:1], after[1:]) if starts else ([self.eot_token_id], after)
        before, after = super()._encode_pair(context, continuation)
        spaces = context[len(context.rstrip()) :]
        return before, after or self.tok_encode(spaces + continuation)

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        raise NotImplementedError("loglikelihood does not call it")

    def _keep(
        self, requests: Sequence[Instance], items: Sequence[list[tuple[Request, Scored]]]
    ) -> None:
        for request, item in zip(requests, items, strict=True):
            if request.task_name in self.losses:
                self.losses[request.task_name].append(item)


@register_model("gpt_pjit")
class GptPjitLM(ScorerLM):
    """Arguments, by `--model_args`: `checkpoint` (as for `python -m gpt_pjit.evaluate`), `window`
    (longest input in tokens; as trained), `tensor` (devices that split the model), `dtype`.

    `batch_size` is the number of full windows at once on each device.
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
        if jax.process_index() != 0:
            raise RuntimeError("lm-eval runs on process 0; the others call followers.follow()")
        trained = load_everywhere(str(checkpoint), tensor=tensor, dtype=dtype)
        # "auto" is for models that find out by failing; here any number fits that does for one.
        rows = 1 if str(batch_size).startswith("auto") else int(batch_size)
        super().__init__(Scorer(trained, window=window, rows=rows))
        if jax.process_count() > 1:
            # Beside jax.distributed the forks that draw some of its standard errors never end.
            os.environ["DISABLE_MULTIPROC"] = "1"

    def set_cache_hook(self, cache_hook: Any) -> None:
        """`--use_cache`: each checkpoint, window and dtype has a table of its own in the file."""
        super().set_cache_hook(cache_hook)
        trained = self.trained
        checkpoint = fingerprint(trained.workdir / "checkpoints", trained.step)
        cache = cache_hook.dbdict  # an SqliteDict, also the one that lm-eval reads
        cache.tablename = f"{checkpoint} {self.max_length} {trained.model.config.dtype}"
        cache.conn.execute(
            f'CREATE TABLE IF NOT EXISTS "{cache.tablename}" (key TEXT PRIMARY KEY, value BLOB)'
        )
        cache.conn.commit()


def generation_options(options: dict[str, Any], window: int) -> GenerationOptions:
    """By lm-eval's reading of `options`; ConfigError where `window` has no room for a prompt."""
    options = dict(normalize_gen_kwargs(options))
    n_tokens = options.pop("max_gen_toks")
    if n_tokens >= window:
        problem = f"max_gen_toks={n_tokens} leaves no room for a prompt in the window of {window}"
        raise ConfigError([f"{problem} tokens"], SOURCE)
    stop = tuple(filter(None, options.pop("until")))
    temperature = float(options.pop("temperature", 1.0))
    sampling = Sampling(
        temperature if options.pop("do_sample") else 0.0,
        int(options.pop("top_k", None) or 0),
        float(options.pop("top_p", None) or 1.0),
    )
    if options:
        _log.warning(f"generation ignores {', '.join(f'{k}={v}' for k, v in options.items())}")
    return GenerationOptions(n_tokens, sampling, stop)
