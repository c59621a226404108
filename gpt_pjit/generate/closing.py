"""The sample that closes a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt_pjit.config import Config
from gpt_pjit.core.model import Model
from gpt_pjit.core.tokens import Tokenizer
from gpt_pjit.generate.generate import stream
from gpt_pjit.generate.sample import Sampling
from gpt_pjit.trained import Trained


def sample(model: Model, params: Any, config: Config, tokenizer: Tokenizer) -> str:
    """The text that closes a run: `config.sample.prompt`, continued."""
    prompt = [tokenizer.eot_id, *tokenizer.encode(config.sample.prompt)]
    trained = Trained(model, model.weights(params), tokenizer, config, Path(), 0)
    sampling = Sampling(temperature=config.sample.temperature)
    *_, rows = stream(trained, [prompt], config.sample.tokens, sampling, seed=config.seed)
    return f"sample:\n{config.sample.prompt}{rows[0].text}\n"
