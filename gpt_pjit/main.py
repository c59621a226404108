"""Train a GPT.

python -m gpt_pjit.main --config=configs/quickstart.py [--config.optim.steps=100 ...]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from gpt_pjit.commandline import config_source, parse_flags, read_config, report_errors
from gpt_pjit.config import Config
from gpt_pjit.core.runtime import start
from gpt_pjit.core.tokens import Tokenizer, check_vocabulary, load_tokenizer
from gpt_pjit.core.train import train
from gpt_pjit.core.training import Program
from gpt_pjit.data import prepare
from gpt_pjit.generate import Sampling, stream
from gpt_pjit.trained import of_program

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; default runs/<config name>.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other hosts of this pod or job.")


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # Orbax tells every file it writes
    with report_errors():
        config = read_config(_CONFIG)
        start(config, _DISTRIBUTED.value)
        workdir = Path(_WORKDIR.value or f"runs/{config_source(_CONFIG).stem}")
        sys.exit(train(config, workdir, prepare_text, sample))


def prepare_text(config: Config, folder: Path) -> None:
    """Tokenises `data.text` into a set in `folder`, where it is not there yet."""
    if not config.data.tokenizer.startswith("bpe:"):
        tokenizer = load_tokenizer(config.data.tokenizer)
        check_vocabulary(tokenizer.name, tokenizer.vocab_size, config.model.vocab_size)
    prepare(config.data, folder)


def sample(program: Program, params: Any, config: Config, tokenizer: Tokenizer) -> str:
    """The text that closes a run: `config.sample.prompt`, continued."""
    prompt = [tokenizer.eot_id, *tokenizer.encode(config.sample.prompt)]
    trained = of_program(program, params, config, Path(), 0, tokenizer)
    sampling = Sampling(temperature=config.sample.temperature)
    *_, rows = stream(trained, [prompt], config.sample.tokens, sampling, seed=config.seed)
    return f"sample:\n{config.sample.prompt}{rows[0].text}\n"


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
